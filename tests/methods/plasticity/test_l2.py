"""L2 and L2 to the initial weights by hand (methods.md 8.3)."""

import pytest
import torch
from torch import nn

from sparsecl.methods.plasticity.config import L2Config, L2InitConfig
from sparsecl.methods.plasticity.l2 import L2
from sparsecl.methods.plasticity.l2_init import L2Init
from tests.methods.plain import PlainContext


class Problem:
    """A parameter under SGD, with gradients that the test chooses, and L2 on it."""

    def __init__(self, start, *, init: bool = False, dead=None, **options) -> None:
        self.weight = nn.Parameter(torch.tensor(start))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.5)
        self.method = L2Init(L2InitConfig(**options)) if init else L2(L2Config(**options))
        given = {} if dead is None else {"weight": dead}
        self.context = PlainContext(self.weight, self.optimizer, [self.method], dead=given)
        self.method.phase_start(self.context)

    def go(self, gradient=None, steps: int = 1, *, applied: bool = True) -> torch.Tensor:
        size = self.weight.shape
        for _ in range(steps):
            self.weight.grad = torch.zeros(size) if gradient is None else torch.tensor(gradient)
            self.context.step(self.optimizer, applied=applied)
        return self.weight.detach()


def test_a_weight_without_a_gradient_decays_as_the_card_says():
    """(1 - lr lambda)^t"""
    found = Problem([[1.0, -2.0]], strength=0.2).go(steps=3)
    assert found.flatten().tolist() == pytest.approx([0.9**3, -2 * 0.9**3])


def test_it_is_in_the_gradient_so_adam_sees_it():
    """And a first step of Adam is lr long, whatever the pull is."""
    problem = Problem([[3.0, -0.01]], strength=0.2)
    problem.optimizer = torch.optim.Adam([problem.weight], lr=0.1, eps=0.0)
    problem.context = PlainContext(problem.weight, problem.optimizer, [problem.method])
    assert problem.go().flatten().tolist() == pytest.approx([2.9, 0.09])


def test_the_distance_is_from_the_first_phase_for_good():
    problem = Problem([[1.0, -2.0]], init=True, strength=0.2)
    moved = problem.go([[2.0, 0.0]])  # nothing pulls yet
    assert moved.flatten().tolist() == [0.0, -2.0]
    problem.method.phase_start(problem.context)  # the next phase begins, the origin stays
    assert problem.go().flatten().tolist() == pytest.approx([0.1, -2.0])
    assert problem.go(steps=200).flatten().tolist() == pytest.approx([1.0, -2.0])


@pytest.mark.parametrize("init", [False, True])
def test_without_strength_nothing_is_kept_or_changed(init):
    problem = Problem([[0.3, -0.1]], init=init, strength=0.0)
    plain = torch.tensor([[0.3, -0.1]]) - 0.5 * torch.tensor([[0.7, -0.3]])
    assert problem.go([[0.7, -0.3]]).equal(plain) and problem.method.state_dict() == ({}, {})


def test_absent_and_held_weights_and_vectors_take_no_part():
    dead = torch.tensor([[True, False], [False, False]])
    problem = Problem([[0.0, 1.0], [1.0, 1.0]], dead=dead, strength=0.2)
    problem.context.hold("weight", torch.tensor([[False, True], [False, False]]), owner="other")
    found = problem.go()
    assert found[0].tolist() == [0.0, 1.0] and found[1].tolist() == pytest.approx([0.9, 0.9])
    assert problem.context.guard.audit(1) == 0
    assert Problem([1.0, 2.0], strength=0.2).go().tolist() == [1.0, 2.0]
    vectors = Problem([1.0, 2.0], strength=0.2, vectors=True)
    assert vectors.go().tolist() == pytest.approx([0.9, 1.8])


def test_a_discarded_step_changes_nothing():
    found = Problem([[0.3, -0.1]], strength=1.0).go([[1.0, 1.0]], applied=False)
    assert found.equal(torch.tensor([[0.3, -0.1]]))


def test_the_origin_goes_and_comes_back():
    problem = Problem([[0.3, -0.1]], init=True)
    tensors, values = problem.method.state_dict()
    other = Problem([[7.0, 7.0]], init=True)
    other.method.check_state(list(tensors), values)
    other.method.load_state_dict(tensors, values)
    other.method.phase_start(other.context)
    assert other.method.start["weight"].tolist() == pytest.approx([0.3, -0.1])
