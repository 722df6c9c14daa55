"""EWC against closed forms (methods.md 4.1 and reference vector 16.7)."""

import pytest
import torch
from torch import nn

from sparsecl.methods.cl.config import EwcConfig
from sparsecl.methods.cl.ewc import Ewc
from tests.methods.plain import PlainContext


class Problem:
    """Weights [n] under gradient descent on sum h (theta - centre)^2 / 2, and EWC's view of it."""

    def __init__(self, start: list[float], config: EwcConfig) -> None:
        self.weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.05)
        self.ewc = Ewc(config)
        self.context = PlainContext(self.weight, self.optimizer)

    def descend(self, curvature: list[float], centre: list[float], steps: int = 2000) -> None:
        h, c = (torch.tensor(v, dtype=torch.float64) for v in (curvature, centre))
        for _ in range(steps):
            self.weight.grad = h * (self.weight.detach() - c)
            with torch.no_grad():
                self.ewc.after_backward(self.context)
            self.optimizer.step()

    def end_phase(self, fisher: list[float]) -> None:
        self.context.means = {"weight": torch.tensor(fisher, dtype=torch.float64)}
        with torch.no_grad():
            self.ewc.phase_end(self.context)


def test_two_tasks_meet_where_theory_says():
    """theta = (H2 + lambda F1)^-1 (H2 theta2 + lambda F1 theta1), per coordinate."""
    problem = Problem([0.0, 0.0], EwcConfig(strength=0.5))
    problem.descend([2.0, 1.0], [1.0, -2.0])
    problem.end_phase([2.0, 4.0])
    problem.descend([2.0, 3.0], [3.0, 1.0])
    expected = [(2 * 3 + 0.5 * 2 * 1) / (2 + 0.5 * 2), (3 * 1 + 0.5 * 4 * -2) / (3 + 0.5 * 4)]
    assert problem.weight.tolist() == pytest.approx(expected, abs=1e-9)
    assert expected[0] == pytest.approx(7 / 3)  # reference vector 7, with the factor 1/2


def test_separate_anchors_add_up_and_online_forgets():
    runs = {}
    for variant in ("separate", "online"):
        problem = Problem([0.0], EwcConfig(strength=1.0, variant=variant, gamma=0.5))
        for centre, fisher in ((1.0, 2.0), (5.0, 1.0)):
            problem.weight.data.fill_(centre)
            problem.end_phase([fisher])
        problem.descend([1.0], [0.0])
        runs[variant] = problem.weight.item()
    # min theta^2 + 2 (theta - 1)^2 + 1 (theta - 5)^2, halves left out.
    assert runs["separate"] == pytest.approx((2 * 1 + 1 * 5) / (1 + 2 + 1))
    # F = 0.5 * 2 + 1 = 2 at the one anchor 5.
    assert runs["online"] == pytest.approx(2 * 5 / (1 + 2))


def test_no_pull_at_the_anchor_and_none_before_the_first_border():
    problem = Problem([0.3, -0.7], EwcConfig(strength=1e6))
    problem.weight.grad = torch.ones(2, dtype=torch.float64)
    with torch.no_grad():
        problem.ewc.after_backward(problem.context)
    assert problem.weight.grad.tolist() == [1.0, 1.0]
    problem.end_phase([0.1, 12.3])
    with torch.no_grad():
        problem.ewc.after_backward(problem.context)
    assert problem.weight.grad.tolist() == [1.0, 1.0]


def test_state_goes_and_comes_back():
    problem = Problem([1.0], EwcConfig())
    assert problem.ewc.state_dict() == ({}, {})
    problem.end_phase([2.0])
    tensors, values = problem.ewc.state_dict()
    other = Ewc(EwcConfig())
    other.load_state_dict(tensors, values)
    assert other.precision["weight"].tolist() == [2.0]
    assert other.target["weight"].tolist() == [2.0]


@pytest.mark.parametrize(
    "values", [{"strength": -1.0}, {"strength": float("nan")}, {"gamma": 1.1}, {"sequences": 0}]
)
def test_ranges(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        EwcConfig(**values)
