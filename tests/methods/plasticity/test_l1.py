"""L1 by hand: the vector of the card, exact zeros and starts, and weights that take no part."""

import pytest
import torch
from torch import nn

from sparsecl.methods.plasticity.config import L1Config
from sparsecl.methods.plasticity.l1 import L1
from tests.methods.plain import PlainContext


class Problem:
    """A parameter under SGD, with gradients that the test chooses, and L1 on it."""

    def __init__(self, start, lr=0.1, dead=None, **options) -> None:
        self.weight = nn.Parameter(torch.tensor(start))
        self.optimizer = torch.optim.SGD([self.weight], lr=lr)
        self.method = L1(L1Config(**options))
        given = {} if dead is None else {"weight": dead}
        self.context = PlainContext(self.weight, self.optimizer, [self.method], dead=given)
        self.method.phase_start(self.context)

    def go(self, gradient=None, *, applied: bool = True) -> torch.Tensor:
        size = self.weight.shape
        self.weight.grad = torch.zeros(size) if gradient is None else torch.tensor(gradient)
        self.context.step(self.optimizer, applied=applied)
        return self.weight.detach()


def test_the_vector_of_the_card():
    """d = [.3, -.05, .1], lr lambda = .1 -> [.2, 0, 0]"""
    found = Problem([[0.3, -0.05, 0.1]], lr=0.1, strength=1.0).go()
    assert found.flatten().tolist() == pytest.approx([0.2, 0.0, 0.0])
    assert found.flatten()[1:].tolist() == [0.0, 0.0]


def test_what_does_not_move_enough_is_where_it_was_to_the_last_bit():
    """The step is -lr g = [.3, -.05, .1]; the distance from the start is thresholded."""
    start = [[1 / 3, 1e-3, -7.77]]
    problem = Problem(start, lr=0.1, strength=1.0, towards="start")
    found = problem.go([[-3.0, 0.5, -0.99]])
    assert found[0, 0].item() == pytest.approx(1 / 3 + 0.2, abs=1e-6)
    assert found[0, 1:].equal(torch.tensor(start)[0, 1:])
    # The next phase measures from where it begins.
    problem.method.phase_start(problem.context)
    assert problem.go().equal(found)


def test_fewer_move_under_a_stronger_pull_and_none_under_a_large_one():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(8, 8, generator=generator).tolist()
    moved = []
    for strength in (0.0, 0.3, 1.0, 100.0):
        problem = Problem(torch.ones(8, 8).tolist(), strength=strength, towards="start")
        moved.append(int((problem.go(gradient) != 1.0).sum()))
    assert moved[0] == 64 > moved[1] > moved[2] > moved[3] == 0


def test_the_subgradient_is_lambda_times_the_sign():
    problem = Problem([[2.0, -3.0, 0.0]], lr=0.5, strength=0.2, form="subgradient")
    assert problem.go([[1.0, 1.0, 0.0]]).flatten().tolist() == pytest.approx([1.4, -3.4, 0.0])


@pytest.mark.parametrize("form", ["proximal", "subgradient"])
@pytest.mark.parametrize("towards", ["zero", "start"])
def test_without_strength_nothing_is_kept_or_changed(form, towards):
    problem = Problem([[0.3, -0.1]], strength=0.0, form=form, towards=towards)
    plain = torch.tensor([[0.3, -0.1]]) - 0.1 * torch.tensor([[0.7, -0.3]])
    assert problem.go([[0.7, -0.3]]).equal(plain) and problem.method.state_dict() == ({}, {})


def test_absent_and_held_weights_and_vectors_take_no_part():
    dead = torch.tensor([[True, False], [False, False]])
    problem = Problem([[0.0, 1.0], [1.0, 1.0]], dead=dead, strength=1.0)
    problem.context.hold("weight", torch.tensor([[False, True], [False, False]]), owner="other")
    found = problem.go()
    assert found[0].tolist() == [0.0, 1.0] and found[1].tolist() == pytest.approx([0.9, 0.9])
    assert problem.context.guard.audit(1) == 0
    assert Problem([1.0, 2.0], strength=1.0).go().tolist() == [1.0, 2.0]
    assert Problem([1.0, 2.0], strength=1.0, vectors=True).go().tolist() == pytest.approx(
        [0.9, 1.9]
    )


def test_a_discarded_step_changes_nothing():
    problem = Problem([[0.3, -0.1]], strength=1.0)
    assert problem.go([[1.0, 1.0]], applied=False).equal(torch.tensor([[0.3, -0.1]]))


def test_the_start_is_what_it_keeps():
    problem = Problem([[0.3, -0.1]], towards="start")
    tensors, values = problem.method.state_dict()
    assert list(tensors) == ["start"] and values == {}
    other = L1(L1Config(towards="start"))
    other.check_state(["start"], {})
    other.load_state_dict(tensors, values)
    assert other.start["weight"].equal(problem.method.start["weight"])
    with pytest.raises(ValueError, match="it keeps start, not finish"):
        other.check_state(["finish"], {})


def test_ranges():
    with pytest.raises(ValueError, match="strength must be"):
        L1Config(strength=-1.0)
