"""XdG by hand: whose units are open, and what a closed one keeps (methods.md, section 7.1)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.methods.brain.config import XdgConfig
from sparsecl.methods.brain.xdg import Xdg
from sparsecl.sparse.units import UnitGroup
from tests.methods.plain import FACTS, PlainContext


class Model(nn.Module):
    """Two inputs, hidden units, two outputs."""

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(2, num_units), nn.Linear(num_units, 2, bias=False)
        fresh = lambda *_: np.zeros((1, 2), np.float32)  # noqa: E731
        names = {"incoming": ["up.weight"], "outgoing": ["down.weight"]}
        self.hidden = UnitGroup(num_units, fresh=fresh, **names)

    def units(self, *, gated: bool = False):
        if gated:
            self.hidden.add_gate()
        return {"hidden": self.hidden}

    def forward(self, x):
        return self.down(self.hidden(self.up(x)))


def begin(num_units: int, closed: float) -> tuple[Xdg, Model, PlainContext]:
    method, model = Xdg(XdgConfig(closed=closed)), Model(num_units)
    method.attach(model, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return method, model, PlainContext(model, optimizer, [method])


def gates(method: Xdg, model: Model, context: PlainContext, domain: str) -> torch.Tensor:
    context.domain = domain
    method.phase_start(context)
    return model.hidden.gate.clone()


def test_two_domains_share_four_units_in_a_hundred():
    run = begin(100_000, 0.8)
    a, b = gates(*run, "a"), gates(*run, "b")
    assert set(a.tolist()) == {0.0, 1.0}
    assert float(a.mean()) == pytest.approx(0.2, abs=0.005)
    assert float((a * b).mean()) == pytest.approx(0.04, abs=0.003)
    assert gates(*run, "a").equal(a)  # a domain that comes again has its own units


def test_a_closed_unit_says_nothing_and_learns_nothing():
    method, model, context = begin(8, 0.5)
    gate = gates(method, model, context, "a")
    assert 0 < gate.sum() < 8
    x = torch.tensor([[1.0, -2.0]])
    y = model(x)
    open_, shut = gate.bool(), ~gate.bool()
    assert y.allclose((model.up(x) * gate) @ model.down.weight.T)
    y.sum().backward()
    for grad in (model.up.weight.grad, model.down.weight.grad.T):
        assert not grad[shut].any() and grad[open_].all()


def test_no_unit_is_closed_at_zero():
    method, model, context = begin(8, 0.0)
    x, plain = torch.randn(3, 2), Model(8)
    plain.load_state_dict(model.state_dict())
    assert gates(method, model, context, "a").all() and model(x).equal(plain(x))


def test_a_domain_is_scored_with_its_own_units_and_then_the_run_goes_on():
    method, model, context = begin(64, 0.5)
    b, a = gates(method, model, context, "b"), gates(method, model, context, "a")
    with pytest.raises(RuntimeError, match="in the middle"), method.scoring(context, "b"):
        assert model.hidden.gate.equal(b) and not a.equal(b)
        raise RuntimeError("in the middle")
    assert model.hidden.gate.equal(a)


def test_one_phase_for_all_domains_is_refused():
    with pytest.raises(ValueError, match="there is no domain to open units for"):
        XdgConfig().check(replace(FACTS, joint=True, num_phases=1))
