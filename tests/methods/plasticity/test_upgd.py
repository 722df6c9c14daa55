"""UPGD by hand: the vectors of the card (methods.md 16.11, methods2.md 6)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecl.methods.plasticity.config import UpgdConfig
from sparsecl.methods.plasticity.upgd import Upgd
from tests.methods.plain import PlainContext
from tests.methods.plasticity.mlp import Mlp

W, G = [[1.0, -2.0, 0.5]], [[-4.0, 1.0, 1.0]]


class Problem:
    """A parameter under SGD at 0.01, with gradients that the test chooses, and UPGD on it."""

    def __init__(self, start=W, *, dead=None, decay: float = 0.0, **options: Any) -> None:
        self.weight = nn.Parameter(torch.tensor(start))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.01, weight_decay=decay)
        self.upgd = Upgd(UpgdConfig(**options))
        given = {} if dead is None else {"weight": torch.tensor(dead)}
        self.context = PlainContext(self.weight, self.optimizer, [self.upgd], dead=given)

    def go(self, gradient=G, *, applied: bool = True) -> torch.Tensor:
        """What a step has moved, flat."""
        before = self.weight.detach().clone()
        self.weight.grad = torch.tensor(gradient)
        self.context.step(self.optimizer, applied=applied)
        return (self.weight.detach() - before).flatten()


def near(*values: float) -> Any:
    return pytest.approx(values, abs=2e-6)


def test_the_vector_of_the_card_corrected():
    """U = [4, 2, -.5], ubar = [.731059, .622459, .468791]."""
    problem = Problem(sigma=0.0)
    assert problem.go().tolist() == near(0.010758, -0.003775, -0.005312)
    assert problem.upgd.utility["weight"].tolist() == near(0.004, 0.002, -0.0005)


def test_as_coded_the_useful_are_frozen_at_first():
    """The ratio is [1000, 500, -125] at t = 1, beta .999."""
    assert Problem(sigma=0.0, scaling="code").go().tolist() == near(0.0, 0.0, -0.01)


def test_as_coded_a_largest_below_zero_inverts_the_order():
    """U = [-1, -2]: ratio [1, 2] if beta is 0, so the worse one moves less."""
    coded = Problem([[1.0, 2.0]], sigma=0.0, scaling="code", beta=0.0).go([[1.0, 1.0]])
    free = torch.sigmoid(torch.tensor([-1.0, -2.0]))
    assert coded.tolist() == near(*(-0.01 * free).tolist())
    corrected = Problem([[1.0, 2.0]], sigma=0.0, beta=0.0).go([[1.0, 1.0]])
    assert corrected.tolist() == near(-0.01, -0.01)  # neither is of any use


def test_the_scale_of_rows():
    """ubar = [.708661, .609318, .472251] in the card's row; another row has its own."""
    problem = Problem([*W, [0.0, 1e-3, 0.0]], sigma=0.0, scope="local")
    moved = problem.go([*G, [1.0, -1e-3, 1.0]])
    ubar = torch.tensor([0.708661, 0.609318, 0.472251])
    expected = -0.01 * torch.tensor(G[0]) * (1 - ubar)
    assert moved[:3].tolist() == near(*expected.tolist())
    assert moved[4].item() == pytest.approx(1e-5 * (1 - 0.731059), abs=1e-9)
    assert moved[3::2].tolist() == near(-0.005, -0.005)


def test_first_order_utility_misses_the_curvature():
    """L = (w - 3)^2 at 1: U1 = 4, and L(0) - L(1) = 5."""
    problem = Problem([[1.0]], sigma=0.0, beta=0.0)
    problem.go([[-4.0]])
    assert problem.upgd.utility["weight"].tolist() == [4.0]


def test_utilities_are_a_running_mean_corrected_by_age():
    """u_2 = b (1 - b) U_1 + (1 - b) U_2, and all are divided alike."""
    problem = Problem([[1.0, 1.0]], sigma=0.0, beta=0.5)
    problem.optimizer.param_groups[0]["lr"] = 0.0
    problem.go([[-1.0, -1.0]])
    problem.go([[-2.0, 1.0]])
    assert problem.upgd.utility["weight"].tolist() == [1.25, -0.25]


@pytest.mark.parametrize("protecting", [True, False])
def test_noise_is_gated_and_the_step_only_where_it_protects(protecting):
    quiet, loud = (Problem(sigma=sigma, protecting=protecting) for sigma in (0.0, 0.5))
    noise = loud.context.noise(next(iter(loud.context.slices)), "upgd", 0)
    free = 1 - torch.tensor([0.731059, 0.622459, 0.468791])
    plain = -0.01 * torch.tensor(G).flatten()
    moved, still = loud.go(), quiet.go()
    assert still.tolist() == near(*(plain * (free if protecting else 1)).tolist())
    assert (moved - still).tolist() == near(*(-0.01 * 0.5 * noise * free).tolist())


def test_decay_is_not_gated():
    problem = Problem([[1.0, 0.0]], sigma=0.0, decay=0.1)
    assert problem.go([[0.0, 1.0]]).tolist() == near(-0.001, -0.005)


def test_a_decay_that_goes_through_moments_is_gated_with_the_step():
    problem = Problem([[1.0, 0.0]], sigma=0.0, decay=0.1)
    problem.optimizer.param_groups[0]["momentum"] = 0.9
    assert problem.go([[0.0, 1.0]]).tolist() == near(-0.0005, -0.005)


def test_adams_own_step_is_gated():
    """AdaUPGD: the first step is lr long, ubar as in the card."""
    problem = Problem(sigma=0.0)
    problem.optimizer = torch.optim.AdamW([problem.weight], lr=0.01, weight_decay=0.1, eps=0.0)
    problem.context = PlainContext(problem.weight, problem.optimizer, [problem.upgd])
    free = 1 - torch.tensor([0.731059, 0.622459, 0.468791])
    expected = -0.01 * free * torch.tensor(G[0]).sign() - 0.001 * torch.tensor(W[0])
    assert problem.go().tolist() == near(*expected.tolist())


def test_without_protection_and_noise_it_is_plain_training():
    found, plain = Problem(protecting=False, sigma=0.0), Problem(sigma=0.0)
    assert found.go().equal(torch.tensor(W[0]) - 0.01 * torch.tensor(G[0]) - torch.tensor(W[0]))
    assert found.upgd.state_dict() == ({}, {"count": 0, "units": {}})
    assert not found.upgd.needs_update and plain.upgd.needs_update


def test_absent_and_held_weights_have_no_part():
    """The only movable weight has U = -1: the largest is its own, not the zeros of the absent."""
    options = {"scaling": "code", "beta": 0.0, "sigma": 0.0}
    problem = Problem([[1.0, 0.0, 5.0]], dead=[[False, True, False]], **options)
    problem.context.hold("weight", torch.tensor([[False, False, True]]), owner="other")
    moved = problem.go([[1.0, 1.0, -1.0]])
    assert moved.tolist() == near(-0.01 * (1 - 0.731059), 0.0, 0.0)
    noisy = Problem([[1.0, 0.0]], dead=[[False, True]], sigma=1.0)
    assert noisy.go([[1.0, 0.0]])[1] == 0 and noisy.context.guard.audit(1) == 0


def test_vectors_are_left_alone_unless_they_are_asked_for():
    assert Problem([1.0, -2.0], sigma=0.0).go([1.0, 1.0]).tolist() == near(-0.01, -0.01)
    gated = Problem([-1.0, -2.0], sigma=0.0, vectors=True).go([1.0, 1.0])
    assert gated.tolist() == near(-0.01 * (1 - 0.622459), -0.01 * (1 - 0.731059))


def test_a_discarded_step_changes_nothing():
    problem = Problem()
    problem.go()
    before = problem.upgd.state_dict()
    kept = before[0]["utility"]["weight"].clone()
    assert not problem.go(applied=False).any()
    tensors, values = problem.upgd.state_dict()
    assert tensors["utility"]["weight"].equal(kept) and values == before[1]


def test_a_units_utility_is_what_its_gate_would_change():
    """-dL/da at a gate of 1 on each unit, by autograd."""
    torch.manual_seed(0)
    model = Mlp(3, 4, 2, bias=True)
    method = Upgd(UpgdConfig(utility="feature", sigma=0.0, beta=0.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    context = PlainContext(model, optimizer, [method])
    x, gate = torch.randn(5, 3), torch.ones(4, requires_grad=True)
    gated = F.linear(F.relu(model.fc1(x)) * gate, model.fc2.weight, model.fc2.bias)
    (slope,) = torch.autograd.grad(gated.square().sum(), gate)
    model(x).square().sum().backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    context.step(optimizer)
    (found,) = method.units.values()
    assert found.float().tolist() == pytest.approx((-slope).tolist(), rel=1e-5)
    free = 1 - torch.sigmoid(-slope / max(float((-slope).max()), 1e-30))
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    assert torch.allclose(moved["fc1.weight"], -0.1 * grads["fc1.weight"] * free[:, None])
    assert torch.allclose(moved["fc1.bias"], -0.1 * grads["fc1.bias"] * free)
    assert torch.allclose(moved["fc2.weight"], -0.1 * grads["fc2.weight"], atol=1e-6)


def test_state_goes_and_comes_back():
    method = Upgd(UpgdConfig())
    method.check_state(["utility"], {"count": 3, "units": {"a": [0.5, -1.0]}})
    method.check_state([], {"count": 3, "units": {"a": [[0.5, -1.0], [1.0, 0.0]]}})  # side by side
    method.load_state_dict({}, {"count": 3, "units": {"a": [0.5, -1.0]}})
    assert method.state_dict() == ({}, {"count": 3, "units": {"a": [0.5, -1.0]}})
    for values, message in (
        ({"count": -1, "units": {}}, "count: -1"),
        ({"count": 1, "units": {"a": [float("nan")]}}, "units.a"),
        ({"count": 1, "units": {"a": [[0.5], [0.5, 1.0]]}}, "units.a"),
        ({"count": 1, "units": {"a": [0.5, [1.0]]}}, "units.a"),
    ):
        with pytest.raises(ValueError, match=message):
            method.check_state([], values)
    with pytest.raises(ValueError, match="it keeps utility, not other"):
        method.check_state(["other"], {"count": 1, "units": {}})


@pytest.mark.parametrize("values", [{"sigma": -1.0}, {"beta": 1.0}])
def test_ranges(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        UpgdConfig(**values)
