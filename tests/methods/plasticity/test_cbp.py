"""Continual backpropagation by hand (methods.md 8.1, methods2.md 6), on an MLP, no engine."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsecl.methods.facts import RunFacts
from sparsecl.methods.plasticity.cbp import Cbp
from sparsecl.methods.plasticity.config import CbpConfig
from tests.methods.plain import PlainContext
from tests.methods.plasticity.mlp import FRESH, Mlp, given, passing


class Problem:
    """An MLP with given weights, and CBP on it."""

    def __init__(self, model: Mlp, lr: float = 0.0, **options: Any) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        self.cbp = Cbp(CbpConfig(**options))
        self.context = PlainContext(model, self.optimizer, [self.cbp])

    def step(self, x: torch.Tensor, *, applied: bool = True) -> None:
        self.optimizer.zero_grad()
        self.cbp.step_start(self.context)
        self.model(x).square().sum().backward()
        self.context.step(self.optimizer, applied=applied)

    def utility(self) -> list[float]:
        """Corrected by age, as it is compared."""
        (traces,) = self.cbp.groups.values()
        return self.cbp._corrected(traces.utility, traces.age).tolist()


OUT = [[0.5, -2.0, 0.1], [0.5, 2.0, -0.1]]
IN = [[1.0, 1.0], [0.5, 0.5], [2.0, 2.0]]


def test_adaptable_contribution_is_that_of_the_card():
    """methods2.md, CBP test 1: h_t = t [1, 0, 2], decay 0.99."""
    problem = Problem(given(OUT, IN), utility="adaptable_contribution", rate=0.0)
    h = torch.tensor([[1.0, 0.0, 2.0]])
    problem.step(h)
    assert problem.utility() == [0.0, 0.0, 0.0]
    problem.step(2 * h)
    assert problem.utility() == pytest.approx([0.124997, 0.0, 0.024999], abs=1e-6)
    (traces,) = problem.cbp.groups.values()
    mean = problem.cbp._corrected(traces.mean, traces.age)
    assert mean.tolist() == pytest.approx([1.502513, 0.0, 3.005025], abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("contribution", [0.5, 0.0, 0.2]),
        ("weight", [0.5, 2.0, 0.1]),
        ("zero_contribution", [0.0, 0.0, 0.0]),
        ("adaptation", [1.0, 2.0, 0.5]),
    ],
)
def test_the_other_utilities(kind, expected):
    problem = Problem(given(OUT, IN), utility=kind, rate=0.0)
    problem.step(torch.tensor([[1.0, 0.0, 2.0]]))
    assert problem.utility() == pytest.approx(expected)


def test_distances_are_divided_by_the_incoming_weights_alone():
    problem = Problem(given(OUT, IN), utility="feature_by_input", rate=0.0)
    for t in (1.0, 2.0):
        problem.step(t * torch.tensor([[1.0, 0.0, 2.0]]))
    # Of the card's [.124997, 0, .024999] the outgoing means .5, 2, .1 are taken out.
    assert problem.utility() == pytest.approx([0.249994, 0.0, 0.249994], abs=2e-6)


def test_distances_are_weighed_by_the_outgoing_weights_alone():
    problem = Problem(given(OUT, IN), utility="zero_contribution", rate=0.0)
    for t in (1.0, 2.0):
        problem.step(t * torch.tensor([[1.0, 0.0, 2.0]]))
    # The card's [.124997, 0, .024999] times the incoming means 1, .5, 2.
    assert problem.utility() == pytest.approx([0.124997, 0.0, 0.049998], abs=2e-6)


def test_random_utilities_depend_on_seed_and_step_alone():
    found = []
    for h in ([[1.0, 0.0, 2.0]], [[9.0, 9.0, 9.0]]):
        problem = Problem(given(OUT, IN), utility="random", rate=0.0, decay=0.0)
        steps = []
        for _ in range(2):
            problem.step(torch.tensor(h))
            steps.append(problem.utility())
        assert steps[0] != steps[1] and all(0.0 <= u < 1.0 for step in steps for u in step)
        found.append(steps)
    assert found[0] == found[1]


def test_the_most_active_unit_may_be_the_first_to_go():
    """methods.md 16.10: mean |h| 1, .1, 2 and sum |w_out| .5, 4, .1."""
    model = given([[0.5, 4.0, 0.1]], [[1.0]] * 3)
    problem = Problem(model, rate=0.4, maturity=0)
    problem.step(torch.tensor([[1.0, 0.1, 2.0]]))  # 3 x .4 = 1.2: one unit
    assert model.fc2.weight.tolist() == [[0.5, 4.0, 0.0]]
    assert model.fc1.weight.tolist() == [[1.0], [1.0], [FRESH]]
    (traces,) = problem.cbp.groups.values()
    assert traces.age.tolist() == [1, 1, 0] and traces.utility[2] == 0
    assert traces.due == pytest.approx(0.2) and problem.cbp.num_replaced == 1


def test_fractions_are_saved_up():
    """methods2.md, CBP test 2: 50 eligible, rate 1e-3: the first at step 20."""
    problem = Problem(Mlp(1, 50, 1), rate=1e-3, maturity=0)
    for _ in range(19):
        problem.step(torch.ones(1, 1))
    assert problem.cbp.num_replaced == 0
    problem.step(torch.ones(1, 1))
    assert problem.cbp.num_replaced == 1


def test_without_saving_up_a_unit_goes_with_the_probability_of_its_fraction():
    problem = Problem(Mlp(1, 50, 1), rate=0.005, maturity=0, accumulate=False)
    for _ in range(400):
        problem.step(torch.ones(1, 1))
    assert problem.cbp.num_replaced == pytest.approx(100, abs=30)  # sigma = 8.7
    (traces,) = problem.cbp.groups.values()
    assert traces.due == 0.0


def test_nobody_goes_twice_within_its_maturity_and_the_rate_holds():
    """rho n S once all are mature; here none is for `maturity` steps after each replacement."""
    torch.manual_seed(0)
    problem = Problem(Mlp(4, 20, 2), rate=0.05, maturity=10)
    last = np.full(20, -100)
    for step in range(60):
        problem.step(torch.rand(3, 4))
        (traces,) = problem.cbp.groups.values()
        gone = np.flatnonzero(traces.age == 0)
        assert (step - last[gone] > 10).all()
        last[gone] = step
    assert 20 < problem.cbp.num_replaced < 0.05 * 20 * 50


def test_a_replacement_takes_away_the_contribution_and_nothing_else():
    torch.manual_seed(1)
    model = Mlp(3, 4, 2)
    problem = Problem(model, rate=0.25, maturity=0)
    x = torch.rand(5, 3) + 0.1
    model.fc1.weight.data.abs_()
    before, hidden = model(x), F.relu(model.fc1(x))
    outgoing = model.fc2.weight.detach().clone()
    problem.step(x)
    (unit,) = (model.fc2.weight == 0).all(0).nonzero().flatten().tolist()
    lost = hidden[:, [unit]] * outgoing[:, unit]
    assert torch.allclose(model(x), before - lost, atol=1e-6)
    moments = problem.context.slices.moments
    first = problem.context.slices.find("fc1.weight")
    for value in moments(first).values():
        assert not value.view(4, 3)[unit].any() and value.view(4, 3).any(1).sum() == 3


def test_a_bias_takes_over_what_a_constant_unit_gave():
    """Then the function is what it was."""
    model = Mlp(1, 2, 1, bias=True)
    model.fc1.weight.data = torch.tensor([[1e-9], [1.0]])  # fed, and lost beside the bias
    model.fc1.bias.data = torch.tensor([1.0, 0.0])
    model.fc2.weight.data, model.fc2.bias.data = torch.tensor([[0.2, 3.0]]), torch.tensor([0.5])
    problem = Problem(model, rate=0.5, maturity=0, bias_transfer=True, utility="weight")
    x = torch.tensor([[0.3], [0.8]])
    # `weight` would drop the constant unit, of the smaller outgoing weight.
    before = model(x).detach()
    problem.step(x)
    assert model.fc2.weight.tolist() == [[0.0, 3.0]]
    assert model.fc2.bias.tolist() == pytest.approx([0.7])
    assert torch.allclose(model(x), before)
    assert model.fc1.bias.tolist() == [0.0, 0.0] and model.fc1.weight[0, 0] == FRESH


@pytest.mark.parametrize(("kind", "first"), [("global", 3.162), ("per_weight", 1.0)])
def test_the_first_step_of_a_fresh_weight(kind, first):
    """methods2.md 0: Adam with (.9, .999), late in training, g = 1, in learning rates."""
    model = given([[0.1, 1.0]], [[1.0], [1.0]])
    problem = Problem(model, lr=1.0, rate=0.5, maturity=0, utility="weight", adam_restart=kind)
    for param in model.parameters():
        zero = torch.zeros_like(param)
        problem.optimizer.state[param] = {
            "step": torch.tensor(1e5),
            "exp_avg": zero,
            "exp_avg_sq": zero.clone(),
        }
    problem.step(torch.zeros(1, 2))  # moves nothing
    assert model.fc1.weight.flatten().tolist() == [FRESH, 1.0]
    problem.cbp.config = replace(problem.cbp.config, rate=0.0)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    problem.context.step(problem.optimizer)
    assert FRESH - float(model.fc1.weight[0, 0].detach()) == pytest.approx(first, abs=1e-3)
    problem.cbp.check_state(*problem.cbp.state_dict())


def test_units_that_nothing_feeds_are_left_alone():
    problem = Problem(passing([[1.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]), rate=0.5, maturity=0)
    problem.step(torch.ones(1, 2))
    assert problem.model.fc1.weight.tolist() == [[0.0, 0.0], [FRESH, FRESH]]


def test_a_discarded_step_changes_nothing():
    problem = Problem(Mlp(2, 4, 2), rate=0.5, maturity=0)
    problem.step(torch.ones(1, 2))
    before = problem.cbp.state_dict()
    problem.step(torch.ones(1, 2), applied=False)
    assert problem.cbp.state_dict() == before


def test_accumulated_passes_are_one_step():
    once, parts = (Problem(given(OUT, IN), rate=0.0) for _ in range(2))
    h = torch.tensor([[1.0, 0.0, 2.0], [3.0, 1.0, 0.0]])
    once.step(h)
    parts.cbp.step_start(parts.context)
    for row in h:
        parts.model(row[None]).square().sum().backward()
    parts.context.step(parts.optimizer)
    parts.model(7 * h)  # behind the step: not seen
    assert parts.utility() == once.utility()


def test_state_goes_and_comes_back():
    problem = Problem(Mlp(2, 4, 2), rate=0.3, maturity=1)
    for _ in range(4):
        problem.step(torch.rand(2, 2))
    tensors, values = problem.cbp.state_dict()
    other = Cbp(problem.cbp.config)
    other.check_state(tensors, values)
    other.load_state_dict(tensors, values)
    assert other.state_dict() == (tensors, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": [1, 2]}, "one value for each unit"),
        ({"age": [1.0, 1, 1, 1]}, "groups.a.age: 1.0"),
        ({"utility": [-1.0, 0.0, 0.0, 0.0]}, "groups.a.utility: -1.0"),
        ({"mean": [float("nan"), 0.0, 0.0, 0.0]}, "groups.a.mean: nan"),
        ({"due": 1.5}, "groups.a.due: 1.5"),
    ],
)
def test_a_state_that_cannot_be_is_refused(change, message):
    group = {"age": [0] * 4, "utility": [0.0] * 4, "mean": [0.0] * 4, "due": 0.0}
    values = {"groups": {"a": {**group, **change}}, "num_replaced": 0}
    with pytest.raises(ValueError, match=message):
        Cbp(CbpConfig()).check_state((), values)


def test_frozen_weights_are_not_written_to():
    run: RunFacts = SimpleNamespace(freezing=("packnet",), optimizer="adamw")  # pyright: ignore
    with pytest.raises(ValueError, match="weights that packnet freezes"):
        CbpConfig().check(run)


@pytest.mark.parametrize("values", [{"rate": 1.5}, {"maturity": -1}, {"decay": 1.0}])
def test_ranges(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        CbpConfig(**values)
