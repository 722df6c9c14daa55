"""Shrink and perturb against closed forms (methods.md 8.3, methods2.md 6)."""

import pytest
import torch
from torch import nn

from sparsecl.methods.plasticity.config import ShrinkPerturbConfig
from sparsecl.methods.plasticity.shrink_perturb import ShrinkPerturb
from tests.methods.plain import PlainContext


class Problem:
    """A matrix without a gradient under SGD, and shrink and perturb on it."""

    def __init__(self, start: torch.Tensor, lr: float = 0.1, dead=None, **options) -> None:
        self.weight = nn.Parameter(start.clone())
        self.optimizer = torch.optim.SGD([self.weight], lr=lr)
        method = ShrinkPerturb(ShrinkPerturbConfig(**options))
        given = {} if dead is None else {"weight": dead}
        self.context = PlainContext(self.weight, self.optimizer, [method], dead=given)

    def go(self, steps: int = 1, *, applied: bool = True) -> torch.Tensor:
        for _ in range(steps):
            self.weight.grad = torch.zeros_like(self.weight)
            self.context.step(self.optimizer, applied=applied)
        return self.weight.detach()


def test_it_only_shrinks_without_noise():
    """(1 - lr lambda)^t"""
    found = Problem(torch.ones(2, 2), lr=0.5, shrink=0.2, sigma=0.0).go(3)
    assert found.flatten().tolist() == pytest.approx([0.9**3] * 4)


def test_noise_comes_to_rest_where_the_card_says():
    """sigma^2 / (1 - (1 - lr lambda)^2), from zero."""
    found = Problem(torch.zeros(100, 200), lr=0.1, shrink=1.0, sigma=0.01).go(60)
    assert float(found.std()) == pytest.approx(0.01 / (1 - 0.9**2) ** 0.5, rel=0.02)


def test_the_vector_of_the_card_stays_where_it_is():
    """lr 0.003, lambda 1e-4, sigma 1e-5: 0.012910, which takes millions of steps to come to; so it
    is asked whether a step keeps the variance: a^2 v + sigma^2 = v."""
    start = torch.tensor([[0.012910, 0.0]], dtype=torch.float64).expand(2, 2)
    shrunk = Problem(start, lr=0.003, shrink=1e-4, sigma=0.0).go()[0, 0].item()
    noise = Problem(torch.zeros(400, 500), lr=0.003, shrink=1e-4, sigma=1e-5).go()
    gained, lost = float(noise.var()), 0.012910**2 - shrunk**2
    assert gained == pytest.approx(lost, rel=0.02)


def test_absent_and_held_weights_take_no_part():
    dead = torch.tensor([[True, False], [False, True]])
    problem = Problem(torch.eye(2).roll(1, 0), dead=dead, sigma=0.5, shrink=1.0)
    problem.context.hold("weight", torch.tensor([[False, True], [False, False]]), owner="other")
    found = problem.go(3)
    assert found[0, 0] == 0 and found[1, 1] == 0 and found[0, 1] == 1.0
    assert found[1, 0] not in (0.0, 1.0)
    assert problem.context.guard.audit(3) == 0


def test_every_step_has_noise_of_its_own_and_a_discarded_one_has_none():
    problem = Problem(torch.zeros(4, 4), shrink=0.0, sigma=1.0)
    first = problem.go().clone()
    assert problem.go(applied=False).equal(first)
    second = problem.go() - first
    assert not second.equal(first)
    assert problem.context.at(0) and problem.go().sub(first + second).allclose(first)


def test_vectors_are_left_alone_unless_they_are_asked_for():
    assert Problem(torch.zeros(4), sigma=1.0).go().equal(torch.zeros(4))
    assert Problem(torch.zeros(4), sigma=1.0, vectors=True).go().count_nonzero() == 4


@pytest.mark.parametrize("values", [{"shrink": -1.0}, {"sigma": float("nan")}])
def test_ranges(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        ShrinkPerturbConfig(**values)
