"""The guard on eight weights, with the numbers one expects written out."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsecl.errors import InvariantError
from sparsecl.optim.masking import MaskGuard
from tests.optim.by_hand import FlatSlices, slices_of

DEAD = torch.tensor([[False, True, False, True], [True, True, False, False]])
NAN = float("nan")


def eight(values: float = 0.0) -> nn.Parameter:
    return nn.Parameter(torch.full((2, 4), values).masked_fill(~DEAD, 1.0))


def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: torch.Tensor) -> None:
    weight.grad = gradient.clone()
    optimizer.step()


def test_the_mask_that_one_expects():
    weight = eight()
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    MaskGuard(slices_of(weight, optimizer), {"weight": DEAD})
    # A gradient at absent weights does not come from our layers; here it does, to see it undone.
    step(weight, optimizer, torch.ones(2, 4))
    assert weight.tolist() == [[0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5]]
    momentum = optimizer.state[weight]["momentum_buffer"]
    assert momentum.tolist() == [[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize("garbage", [7.0, NAN, float("inf")])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_garbage_is_gone_after_a_step(kind, garbage):
    weight = eight()
    optimizer = kind([weight], lr=0.1, weight_decay=0.1)
    guard = MaskGuard(slices_of(weight, optimizer), {"weight": DEAD})
    step(weight, optimizer, torch.ones(2, 4).masked_fill(DEAD, 0.0))
    clean = weight.detach().clone()
    for tensor in (weight.data, *optimizer.state[weight].values()):
        if tensor.dim():
            tensor[DEAD] = garbage
    step(weight, optimizer, torch.zeros(2, 4))
    assert (weight[DEAD] == 0).all()
    assert (optimizer.state[weight]["exp_avg"][DEAD] == 0).all()
    assert (optimizer.state[weight]["exp_avg_sq"][DEAD] == 0).all()
    assert torch.isfinite(weight).all()
    assert (weight[~DEAD] < clean[~DEAD]).all()  # momentum goes on at live weights
    assert guard.audit(2) == 0


class Selections(TorchDispatchMode):
    """Counts what sets absent entries to zero, on a CPU and elsewhere."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += func.overloadpacket.__name__ in ("masked_fill_", "bitwise_and_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])  # tensors of the latter have no content
def test_what_is_stepped_as_one_is_projected_as_one(device):
    flat = nn.Parameter(torch.zeros(30, device=device))
    optimizer = torch.optim.Adam([flat])
    state = {name: torch.zeros(30, device=device) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[flat] = state
    guard = MaskGuard(FlatSlices(["a", "b", "c"], flat, optimizer), {"a": DEAD, "c": ~DEAD})
    with Selections() as seen:
        guard._after_step(optimizer, (), {})
    assert seen.number == 3  # of the master and both moments


def test_a_part_of_what_is_stepped_as_one_keeps_every_bit_but_the_absent():
    flat = nn.Parameter(torch.zeros(30))
    optimizer = torch.optim.SGD([flat], lr=0.1)
    mask = DEAD.clone()
    guard = MaskGuard(FlatSlices(["a", "b", "c"], flat, optimizer), {"a": mask, "c": ~DEAD})

    def zeros() -> list[int]:
        flat.data.fill_(NAN)
        guard._after_step(optimizer, (), {})
        return (flat == 0).nonzero()[:, 0].tolist()

    assert zeros() == [1, 3, 4, 5, 20, 22, 26, 27]
    assert int(flat.isnan().sum()) == 22
    mask[0, 0], mask[0, 1] = True, False  # an edge has moved
    guard.refresh_mask("a")
    assert zeros() == [0, 3, 4, 5, 20, 22, 26, 27]
    flat.data.zero_()[21] = 1.0
    assert {name: int(n) for (name, _), n in guard.counts().items()} == {"a": 0, "c": 0}
    flat.data[20] = 1.0
    assert int(guard.counts()["c", "master"]) == 1


@pytest.mark.parametrize("garbage", [1e-30, NAN])
@pytest.mark.parametrize("copy", ["master", "momentum_buffer", "gradient"])
def test_the_audit_counts_and_names(copy, garbage):
    weight = eight()
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.9)
    guard = MaskGuard(slices_of(weight, optimizer), {"weight": DEAD})
    step(weight, optimizer, torch.ones(2, 4))
    assert guard.audit(1) == 0
    tensor = {
        "master": weight.data,
        "momentum_buffer": optimizer.state[weight]["momentum_buffer"],
        "gradient": weight.grad,
    }[copy]
    assert tensor is not None
    tensor.masked_fill_(DEAD, 0.0)
    tensor[0, 1] = tensor[1, 0] = garbage
    guard.audit_gradients()
    with pytest.raises(InvariantError, match=rf"rank 0: .*weight \({copy}\): 2"):
        guard.audit(2)
    assert guard.checks == 2
    assert guard.nonzero >= 2


def test_role_update_keeps_initial_values_whatever_pulls():
    weight = eight(0.25)
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    guard = MaskGuard(slices_of(weight, optimizer), {})
    guard.hold("weight", DEAD, "topology")
    for _ in range(3):
        step(weight, optimizer, torch.ones(2, 4))
    assert (weight[DEAD] == 0.25).all()
    assert (weight[~DEAD] < 0.8).all()
    assert (optimizer.state[weight]["exp_avg"][DEAD] == 0).all()
    assert guard.audit(3) == 0
    weight.data[0, 1] = 0.0  # zero is garbage here
    with pytest.raises(
        InvariantError, match=r"weight \(held weight\): 1; weight \(held master\): 1"
    ):
        guard.audit(4)


def test_a_dense_layer_is_left_alone_and_close_unhooks():
    weight = eight(1.0)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    guard = MaskGuard(slices_of(weight, optimizer), {})
    step(weight, optimizer, torch.ones(2, 4))
    assert (weight == 0).all()
    guard.close()
    held = MaskGuard(slices_of(weight, optimizer), {"weight": DEAD})
    held.close()
    step(weight, optimizer, -torch.ones(2, 4))
    assert (weight == 1).all()
