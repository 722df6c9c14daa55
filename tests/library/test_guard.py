"""One process: what the guard repairs, what its audit finds, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import nn

import sparsecl
from sparsecl.errors import InvariantError, UserError
from sparsecl.library.audit import Audit
from tests.library import cases


def masked() -> tuple[cases.Net, torch.optim.AdamW, torch.Tensor]:
    """A model, its optimizer, and where `up` is dead."""
    net = cases.Net()
    topology = sparsecl.mask_linears(net, density=0.3)["up"]
    return net, cases.adamw(net), ~torch.from_numpy(topology.mask())


def test_weights_that_were_only_set_to_zero_come_back() -> None:
    """What people do without a mask: the dense gradient trains every weight."""
    net = cases.Net()
    dead = ~torch.from_numpy(sparsecl.draw("er_fixed", 6, 8, density=0.3).mask())
    net.up.weight.data[dead] = 0.0
    optimizer = cases.adamw(net)
    for step in range(cases.NUM_STEPS):
        optimizer.zero_grad()
        net(cases.batch(step)).square().mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), cases.CLIP)
        optimizer.step()
    for tensor in (net.up.weight, net.up.weight.grad, optimizer.state[net.up.weight]["exp_avg"]):
        assert tensor is not None and (tensor[dead] != 0).all()


def test_the_audit_counts_every_copy_and_repairs_none() -> None:
    net, optimizer, dead = masked()
    guard = sparsecl.mask_guard(net, optimizer)
    net(cases.batch(0)).sum().backward()
    optimizer.step()
    assert guard.audit(strict=True) == Audit(0, 0, 0)
    at = tuple(dead.nonzero()[0])
    weight, state = net.up.weight, optimizer.state[net.up.weight]
    assert weight.grad is not None
    weight.data[at] = float("nan")
    weight.grad[at] = state["exp_avg"][at] = state["exp_avg_sq"][at] = 1e-30
    assert guard.audit() == guard.audit() == Audit(weights=1, gradients=1, state=2)
    with pytest.raises(InvariantError, match=r"4 absent .*rank 0: .*up.weight \(exp_avg\): 1"):
        guard.audit(strict=True)
    optimizer.step()  # NaN and all
    assert guard.audit(strict=True).total == 0


def test_gradients_that_were_assigned_are_zeroed_before_the_step() -> None:
    net, optimizer, dead = masked()
    guard = sparsecl.mask_guard(net, optimizer)
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert net.up.weight.grad is not None and (net.up.weight.grad == dead.logical_not()).all()
    assert guard.audit(strict=True).total == 0


def test_it_begins_with_zeros_whatever_was_loaded() -> None:
    net, optimizer, dead = masked()
    net.load_state_dict(cases.Net().state_dict())
    assert (net.up.weight[dead] != 0).any()
    guard = sparsecl.mask_guard(net, optimizer)
    assert guard.audit(strict=True).total == 0


def test_closed_it_does_no_more() -> None:
    net, optimizer, dead = masked()
    sparsecl.mask_guard(net, optimizer).close()
    net.up.weight.data[dead] = 1.0
    net(cases.batch(0)).sum().backward()
    optimizer.step()
    assert (net.up.weight[dead] != 0).all()


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "RMSprop", "Adagrad", "NAdam", "LBFGS", "Adafactor"]
)
def test_other_optimizers(name: str) -> None:
    net = cases.Net()
    options: dict[str, Any] = {"SGD": {"momentum": 0.9, "weight_decay": 0.1}}.get(name, {})
    optimizer = getattr(torch.optim, name)(net.parameters(), lr=0.05, **options)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(cases.batch(0)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    topology = sparsecl.mask_linears(net, density=0.3)["up"]
    guard = sparsecl.mask_guard(net, optimizer)
    for _ in range(5):
        optimizer.step(closure)
        assert guard.audit(strict=True).total == 0
        assert (net.up.weight[~torch.from_numpy(topology.mask())] == 0).all()


def test_several_optimizers_and_frozen_layers() -> None:
    net = cases.Net()
    sparsecl.mask_linears(net, density=0.3)
    first = torch.optim.SGD(net.up.parameters(), lr=0.1)
    second = cases.adamw(nn.ModuleList([net.down, net.lm_head]))
    with pytest.raises(UserError, match="holds down.weight"):
        sparsecl.mask_guard(net, first)
    guard = sparsecl.mask_guard(net, first, second)
    net(cases.batch(0)).sum().backward()
    first.step()
    second.step()
    assert guard.audit(strict=True).total == 0
    guard.close()
    net.down.requires_grad_(False)
    net.down.weight.data.fill_(1.0)
    assert sparsecl.mask_guard(net, first).audit(strict=True).total == 0


def test_a_parameter_that_is_put_in_later_is_found() -> None:
    """As by Accelerate, which changes a made optimizer when it shards a model."""
    net, optimizer, dead = masked()
    guard = sparsecl.mask_guard(net, optimizer)
    old, new = net.up.weight, nn.Parameter(torch.ones(6, 8))
    net.up.weight = new
    with pytest.raises(UserError, match="holds up.weight"):
        sparsecl.mask_guard(net, cases.adamw(cases.Net()))
    for group in optimizer.param_groups:
        group["params"] = [new if param is old else param for param in group["params"]]
    net(cases.batch(0)).sum().backward()
    assert new.grad is not None and (new.grad[dead] == 0).all()
    optimizer.step()
    assert guard.audit(strict=True).total == 0 and (new[dead] == 0).all()


class EightBit(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["codes"] = torch.ones(param.shape, dtype=torch.uint8)


def test_mistakes_are_told() -> None:
    net, optimizer, _ = masked()
    with pytest.raises(UserError, match="no layer of the model is masked"):
        sparsecl.mask_guard(cases.Net(), optimizer)
    with pytest.raises(UserError, match="give the optimizer too"):
        sparsecl.mask_guard(net)
    with pytest.raises(UserError, match="no optimizer that it was given holds up.weight"):
        sparsecl.mask_guard(net, cases.adamw(cases.Net()))
    with pytest.raises(UserError, match="dict is no torch optimizer"):
        sparsecl.mask_guard(net, {})
    codes = EightBit(net.parameters())
    sparsecl.mask_guard(net, codes)
    with pytest.raises(UserError, match="EightBit keeps codes of up.weight as torch.uint8"):
        codes.step()
