"""WSCL by hand: how many blocks a phase freezes, and what wake and sleep do."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.methods.brain import trial
from sparsecl.methods.brain.config import WsclConfig
from sparsecl.methods.brain.wscl import Wscl
from sparsecl.methods.cl.config import DerppConfig
from sparsecl.methods.cl.derpp import Derpp
from tests.methods.cl.test_derpp import step as derpp_step
from tests.methods.cl.test_derpp import table
from tests.methods.plain import FACTS, PlainContext, batch


class Model(nn.Module):
    """An embedding and three blocks, of two weights each."""

    topology = None

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(2, 1, bias=False)
        self.layers = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(3))
        for param, value in zip(self.parameters(), (1.0, 2.0, -3.0, 4.0), strict=True):
            param.data = torch.tensor([[value, -0.5]])

    def linears(self) -> dict[str, Any]:
        return {f"layers.{i}": self for i in range(3)}


class Context(PlainContext):
    """All gradients are 1, and the loss of a copy is what `score` makes of its weights."""

    score: Any = None

    def frozen_copy(self, masters: Any = None) -> Any:
        weights = torch.cat([item.master.view(-1) for item in self.slices]).clone()
        losses = self.score(weights)
        return lambda rows: SimpleNamespace(losses=losses.expand(len(rows), 1))


def begin(**options: Any) -> tuple[Wscl, Model, Context]:
    chosen = {"sequences": 8, "share": 0.5, "top": 2, "trial_steps": 2, "trial_lr": 0.25}
    method, model = Wscl(WsclConfig(**{**chosen, **options})), Model()
    method.attach(model, 3)
    context = Context(model, torch.optim.SGD(model.parameters(), lr=0.1), [method])
    context.means = {item.name: torch.ones(2) for item in context.slices}
    method.reservoir.insert(np.array([[0, n] for n in range(8)]), np.random.default_rng(0))
    return method, model, context


def moved(weights: torch.Tensor) -> list[bool]:
    """Which of embedding and blocks a copy has moved, by two steps of 0.25."""
    away = torch.tensor([1.0, 2.0, -3.0, 4.0]) - weights[::2]
    assert all(value in (0.0, 0.5) for value in away.tolist())
    return (away > 0).tolist()


def test_the_lowest_score_after_rounding_and_of_equal_ones_the_fewest_blocks():
    assert trial.best([0.913, 0.911, 0.918]) == 0
    assert trial.best([0.92, 0.906, 0.913]) == 1


def test_the_trials_of_two_phases():
    """Three blocks: none, one or two may be frozen; never the last one, nor the embedding."""
    method, model, context = begin()
    seen: list[list[bool]] = []

    def prefer(num: int) -> Any:
        def score(weights: torch.Tensor) -> torch.Tensor:
            seen.append(moved(weights))
            return torch.tensor(abs(seen[-1][1:].count(False) - num) + 0.123)

        return score

    context.score = prefer(1)
    before = [param.detach().clone() for param in model.parameters()]
    method.phase_start(context)
    assert method.frozen == 0 and not seen  # the first phase has nothing to lose
    method.phase_start(context.at(10, phase=1, data_step=0))
    assert seen == [[True] * 4, [True, False, True, True], [True, False, False, True]]
    assert method.frozen == 1 and method.figures(context) == {"frozen": 1.0}
    assert all(a.equal(b) for a, b in zip(model.parameters(), before, strict=True))
    held = {item.name: context.guard.holds.count(item) for item in context.slices}
    assert held == {"embedding.weight": 0, **{f"layers.{i}.weight": 2 * (i == 0) for i in range(3)}}
    # For good: the next phase begins at one block.
    seen.clear()
    context.score = prefer(0)
    method.phase_start(context.at(20, phase=2, data_step=0))
    assert seen == [[True, False, True, True], [True, False, False, True]] and method.frozen == 1


def test_without_trials_it_is_derpp():
    class Same(Wscl):
        name = "derpp"  # and so its random streams

    options: Any = {"sequences": 8, "share": 0.5, "top": 2, "alpha": 0.5}
    other = Same(WsclConfig(trial_steps=0, **options))
    methods = (Derpp(DerppConfig(**options)), other)
    for number in range(4):
        found, own, term = derpp_step(methods[0], table(), number)
        also, its, again = derpp_step(other, table(), number)
        assert found.rows.tolist() == also.rows.tolist() and own.equal(its)
        assert term is again is None or term.equal(again)
    values = [method.state_dict()[1] for method in methods]
    assert values[0].items() <= values[1].items()


def described(**options: Any) -> tuple[Wscl, Model, Context]:
    chosen = {"variant": "described", "every": 4, "sleep": 0.5, "held": 0.5, "down_scaling": 0.5}
    return begin(**{**chosen, "protected": 0.5, **options})


def train(run: Any) -> Any:
    """One step without a forward pass: names of its rows."""
    method, model, context = run
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    method.step_start(context)
    first = 4 * context.progress.data_step
    rows = np.stack([100 * context.progress.phase + np.arange(first, first + 4)] * 2, axis=1)
    found = method.batch(context, batch(rows, context.progress.phase, first))
    assert (found.origin @ [100, 1]).tolist() == found.rows[:, 0].tolist()
    method._seen = []
    method._slots[:] = -1  # what the model says is of test_derpp.py
    context.step(context.slices.optimizer)
    return found


def test_a_cycle_of_two_steps_awake_and_two_asleep():
    """Of each block the larger weight is held awake, the embedding is not; asleep all move, and in
    the end the weaker one halves."""
    run = described()
    method, model, context = run
    for at in range(2):
        found = train(run)
        assert found.origin.tolist() == [[0, 4 * at + i] for i in range(4)] and found.plain
        for value, layer in zip((2.0, -3.0, 4.0), model.layers, strict=True):
            assert layer.weight[0].tolist() == pytest.approx([value, -0.6 - 0.1 * at])
        assert model.embedding.weight[0].tolist() == pytest.approx(
            [0.9 - 0.1 * at, -0.6 - 0.1 * at]
        )
    assert method.state_dict()[0]["held"]["layers.1.weight"].tolist() == [1.0, 0.0]
    for at in range(2):
        found = train(run)
        assert len(found.rows) == 8 and found.weight.tolist() == [2.0] * 4 + [0.0] * 4
        assert {number for _, number in found.origin[:4].tolist()} <= set(range(8))
        halved = 0.5 if at else 1.0
        for value, layer in zip((2.0, -3.0, 4.0), model.layers, strict=True):
            wanted = [value - 0.1 * (at + 1), (-0.8 - 0.1 * at) * halved]
            assert layer.weight[0].tolist() == pytest.approx(wanted)
        assert not method.holding and method.state_dict()[0] == {}
    assert method.replayed_sequences == 2 * (4 + 2 + 2)
    assert model.embedding.weight[0].tolist() == pytest.approx([0.6, -0.9])
    train(run)
    assert method.recent == [[0, 4]] and method.holding


def test_sleep_remembers_nothing_new():
    run = described()
    for _ in range(4):
        train(run)
    assert run[0].reservoir.num_seen == 8 + 2 * 4


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_state_comes_back(steps):
    run, other = described(), described()
    for _ in range(steps):
        train(run)
    tensors, values = run[0].state_dict()
    values = json.loads(json.dumps(values))
    other[0].check_state(tensors, values)
    other[0].load_state_dict(tensors, values)
    for a, b in zip(run[1].parameters(), other[1].parameters(), strict=True):
        b.data = a.detach().clone()
    other[2].at(steps)
    other[0].resumed(other[2])
    for _ in range(4):
        assert train(run).origin.tolist() == train(other).origin.tolist()
        for a, b in zip(run[1].parameters(), other[1].parameters(), strict=True):
            assert a.equal(b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": 1}, "frozen: 1 is no number of blocks"),
        ({"holding": True}, "holding: True, with 0 slice tensors"),
        ({"recent": [[0, 1]] * 5}, "recent: 5 steps in one cycle"),
        ({"recent": [[0, "1"]]}, r"recent: \[0, '1'\] is no \[phase, step\]"),
    ],
)
def test_a_state_that_it_never_gives(changes, message):
    method = described()[0]
    with pytest.raises(ValueError, match=message):
        method.check_state((), {**method.state_dict()[1], **changes})


def test_what_a_run_must_have():
    WsclConfig(every=1).check(FACTS)  # released has no cycle
    with pytest.raises(ValueError, match="sleep=0.2 of every=1 steps is 0 of them"):
        WsclConfig(variant="described", every=1).check(FACTS)
    with pytest.raises(ValueError, match="methods.replay asks every step for its new sequences"):
        WsclConfig(variant="described").check(replace(FACTS, others=("replay",)))
    with pytest.raises(ValueError, match="share=0.3 of the 4 sequences"):
        WsclConfig(share=0.3).check(FACTS)
