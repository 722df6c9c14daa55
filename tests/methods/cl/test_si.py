"""Synaptic intelligence by hand: the path integral, the importance and the pull."""

import pytest
import torch
from torch import nn

from sparsecl.methods.base import Method
from sparsecl.methods.cl.config import EwcConfig, SiConfig
from sparsecl.methods.cl.ewc import Ewc
from sparsecl.methods.cl.si import Si
from tests.methods.plain import PlainContext


class Descent:
    """theta [n] under plain gradient descent on sum theta^2 / 2, with a method."""

    def __init__(
        self, method: Si, start: list[float], *others: Method, lr: float = 0.1, up: bool = False
    ) -> None:
        self.si, self.weight = method, nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.weight], lr=lr, maximize=up)
        self.context = PlainContext(self.weight, self.optimizer, [*others, method])
        self.context.methods.phase_start(self.context)

    def step(self, times: int = 1, *, applied: bool = True) -> None:
        for _ in range(times):
            self.weight.grad = self.weight.detach().clone()
            self.context.step(self.optimizer, applied=applied)

    def end_phase(self) -> None:
        self.context.methods.phase_end(self.context)
        self.context.methods.phase_start(self.context)


def test_two_steps_and_the_pull_by_hand():
    """omega = 2 * .2 + 1.8 * .18 = .724, Omega = .724 / (.38^2 + .001); 2 c Omega (1 - 1.62)."""
    run = Descent(Si(SiConfig(strength=0.1)), [2.0])
    run.step(2)
    assert run.si.path["weight"].item() == pytest.approx(0.724)
    run.end_phase()
    assert run.si.precision["weight"].item() == pytest.approx(4.979367, abs=1e-6)
    with torch.no_grad():
        run.weight.fill_(1.0)
    run.weight.grad = torch.zeros(1, dtype=torch.float64)
    run.context.after_backward()
    assert run.weight.grad.item() == pytest.approx(-0.617442, abs=1e-6)


def test_small_steps_sum_to_the_decrease_of_the_loss():
    run = Descent(Si(SiConfig()), [2.0, -1.0], lr=1e-3)
    run.step(1000)
    decrease = (4.0 + 1.0) / 2 - float(run.weight.detach().square().sum()) / 2
    assert float(run.si.path["weight"].sum()) == pytest.approx(decrease, rel=2e-3)


def test_importances_of_phases_add_up_and_the_anchor_is_the_latest():
    run = Descent(Si(SiConfig(strength=0.0)), [2.0])
    run.step(2)
    run.end_phase()
    run.step()
    run.end_phase()
    second = 1.62 * 0.162 / (0.162**2 + 1e-3)
    omega = run.si.precision["weight"].item()
    assert omega == pytest.approx(4.979367 + second, abs=1e-5)
    assert run.si.target["weight"].item() == pytest.approx(omega * 1.458, rel=1e-6)


@pytest.mark.parametrize(("negative", "expected"), [("keep", -0.4 / 0.041), ("clip", 0.0)])
def test_a_way_uphill(negative, expected):
    """omega = -2 * .2 = -.4 on a way of .2."""
    run = Descent(Si(SiConfig(negative=negative, strength=0.0)), [2.0], up=True)
    run.step()
    run.end_phase()
    assert run.si.precision["weight"].item() == pytest.approx(expected)


def test_a_step_that_is_not_made_leaves_no_trace():
    run = Descent(Si(SiConfig()), [2.0])
    run.step()
    path = run.si.path["weight"].clone()
    run.step(applied=False)
    run.context.skip_update()
    run.step()
    assert run.si.path["weight"].equal(path)
    run.step()
    assert run.si.path["weight"].item() == pytest.approx(0.724)


def test_no_penalty_is_in_its_gradient_but_all_of_them_are_in_its_step():
    """With EWC beside it: g is the loss's alone, the displacement that of the whole step."""
    ewc = Ewc(EwcConfig(strength=3.0))
    run = Descent(Si(SiConfig(strength=0.5)), [2.0], ewc)
    run.context.means = {"weight": torch.tensor([1.0], dtype=torch.float64)}
    run.step()
    run.end_phase()  # both anchors at 1.8
    importance = 0.4 / 0.041
    with torch.no_grad():
        run.weight.fill_(1.0)
    run.si.start["weight"].fill_(1.0)
    run.step()
    gradient = 1.0 + 3.0 * (1.0 - 1.8) + 2 * 0.5 * importance * (1.0 - 1.8)
    assert run.weight.item() == pytest.approx(1.0 - 0.1 * gradient)
    assert run.si.path["weight"].item() == pytest.approx(1.0 * 0.1 * gradient)


def test_strength_zero_touches_no_gradient():
    run = Descent(Si(SiConfig(strength=0.0)), [2.0])
    run.step()
    run.end_phase()
    run.context.slices.refresh_norms = None  # pyright: ignore[reportAttributeAccessIssue]
    run.step()  # would call it if a gradient had changed
    assert run.weight.item() == pytest.approx(1.8 * 0.9)


def test_state_goes_and_comes_back_in_the_middle_of_a_phase():
    one, other = Descent(Si(SiConfig()), [2.0]), Descent(Si(SiConfig()), [2.0])
    one.step(3)
    one.end_phase()
    one.step(2)
    tensors, values = one.si.state_dict()
    one.si.check_state(tensors, values)
    saved = {key: {name: v.clone() for name, v in found.items()} for key, found in tensors.items()}
    other.si.load_state_dict(saved, values)
    with torch.no_grad():
        other.weight.copy_(one.weight)
    for run in (one, other):
        run.step(2)
        run.context.methods.phase_end(run.context)
    for key, found in one.si.state_dict()[0].items():
        assert found["weight"].equal(other.si.state_dict()[0][key]["weight"])


@pytest.mark.parametrize(
    "names", [["path"], ["start", "precision", "target"], ["path", "start", "x"]]
)
def test_a_state_that_it_never_gives(names):
    with pytest.raises(ValueError, match="keeps"):
        Si(SiConfig()).check_state(names, {})


@pytest.mark.parametrize("values", [{"strength": -1.0}, {"xi": 0.0}])
def test_ranges(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        SiConfig(**values)
