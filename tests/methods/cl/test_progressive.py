"""Progressive networks: who moves in which phase, which column answers, and what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsecl import config as configs
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import make_schedule
from sparsecl.errors import UserError
from sparsecl.methods.cl.config import ProgressiveConfig
from sparsecl.methods.cl.progressive import Progressive
from sparsecl.methods.config import MethodsConfig
from tests.methods.plain import FACTS, PlainContext
from tests.methods.test_config import RANK


class Model(nn.Module):
    """Two weights in each of three columns, of which all get a gradient."""

    open = 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.columns = nn.ModuleDict({k: nn.Linear(2, 1, bias=False) for k in "12"})


class Side:
    def __init__(self, model: Model) -> None:
        self.model = model

    def columns(self) -> Model:
        return self.model


class Run:
    def __init__(self) -> None:
        self.model, self.method = Model(), Progressive(ProgressiveConfig())
        self.method.attach(Side(self.model), 3)  # pyright: ignore[reportArgumentType]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.5)
        self.context = PlainContext(self.model, self.optimizer, [self.method])

    def phase(self, number: int, domain: str) -> set[str]:
        """Train two steps; the parameters that moved."""
        self.context.domain = domain
        self.context.at(2 * number, phase=number)
        self.method.phase_start(self.context)
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for _ in range(2):
            for p in self.model.parameters():
                p.grad = torch.ones_like(p)
            self.context.step(self.optimizer)
        return {name for name, p in self.model.named_parameters() if not p.equal(before[name])}

    def answering(self, domain: str) -> int:
        with self.method.scoring(self.context, domain):
            return self.model.open


def test_a_phase_moves_its_column_alone_and_a_domain_keeps_its_own():
    run = Run()
    assert run.phase(0, "a") == {"weight"}
    assert (run.answering("a"), run.answering("b"), run.model.open) == (0, 0, 0)
    assert run.phase(1, "b") == {"columns.1.weight"}
    # One that is not trained yet is asked of the newest.
    assert [run.answering(name) for name in "abc"] == [0, 1, 1]
    assert run.phase(2, "a") == {"columns.2.weight"}
    assert [run.answering(name) for name in "ab"] == [2, 1]
    assert run.model.open == 2  # after each


def test_its_state_comes_back():
    run, other = Run(), Run()
    run.phase(0, "a")
    run.phase(1, "b")
    _, values = run.method.state_dict()
    other.method.check_state((), values)
    other.method.load_state_dict({}, values)
    other.context.at(3, phase=1)
    other.method.resumed(other.context)
    assert [other.answering(name) for name in "ab"] == [0, 1] and other.model.open == 1


@pytest.mark.parametrize("phases", [{"a": -1}, {"a": "1"}, {"a": True}])
def test_a_state_that_was_never_given_is_refused(phases):
    with pytest.raises(ValueError, match="which is no phase"):
        Progressive(ProgressiveConfig()).check_state((), {"phases": phases})


@pytest.mark.parametrize(
    ("options", "facts", "said"),
    [
        ({}, {"joint": True}, "phases.joint trains all at once"),
        ({"num_columns": 2}, {}, "num_columns=2: the run has 3 phases.* Use 3, leave it out"),
        ({}, {"role": "update"}, "Use role topology"),
        ({}, {"others": ("ewc", "replay")}, "^ewc would look at columns that rest"),
    ],
)
def test_what_does_not_fit_is_refused(options, facts, said):
    with pytest.raises(ValueError, match=said):
        ProgressiveConfig(**options).check(replace(FACTS, **facts))


def test_what_fits_is_not():
    ProgressiveConfig(num_columns=4).check(replace(FACTS, others=("replay",)))


def test_columns_of_a_run():
    methods = MethodsConfig(progressive=ProgressiveConfig(rank=4))
    assert methods.columns(3) == (3, 4) and methods.columns(1) == (1, 0)
    assert MethodsConfig(progressive=ProgressiveConfig(num_columns=5)).columns(3) == (5, 16)
    assert MethodsConfig().columns(3) == (1, 0)
    assert methods.about((), 3, 700) == {
        "progressive": {"flags": "I B F X C", "extra_parameters": 700}
    }


def test_more_phases_than_columns_are_refused_before_any_work():
    domains = "data.domains=[{name: a, source: synthetic}, {name: b, source: synthetic}]"
    overrides = [domains, "methods.progressive={num_columns: 1}"]
    with pytest.raises(UserError, match=r"methods.progressive.num_columns=1: the run has 2 phases"):
        make_schedule(configs.load(RunConfig, None, overrides), world_size=1)
    config = configs.load(RunConfig, None, [domains, "methods.progressive={rank: 4}"])
    assert (config.shape.columns, config.shape.lateral) == (2, 4)
    assert make_schedule(config, world_size=1).shape == config.shape


def test_all_but_one_column_are_held():
    found = ProgressiveConfig().memory(RANK)  # of three phases
    assert (RANK.num_phases, found.beside) == (3, 6 * 1000 * 2 // 3)
    assert ProgressiveConfig(num_columns=4).memory(RANK).beside == 6 * 1000 * 3 // 4
