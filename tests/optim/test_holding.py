"""What is held keeps every bit, and an audit finds one that has moved."""

import pytest
import torch
from torch import nn

from sparsecl.errors import InvariantError
from sparsecl.optim.masking import MaskGuard
from tests.optim.by_hand import slices_of

WHERE = torch.tensor([True, False, False, True])


def guarded(start: float = 0.3) -> tuple[nn.Parameter, torch.optim.AdamW, MaskGuard]:
    weight = nn.Parameter(torch.full((4,), start))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    return weight, optimizer, MaskGuard(slices_of(weight, optimizer), {})


def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer, guard: MaskGuard) -> None:
    weight.grad = torch.tensor([1.0, -2.0, 3.0, float("inf")])
    assert guard.still() == bool(guard.holds)
    optimizer.step()


def test_held_weights_keep_their_bits_and_have_no_moments():
    weight, optimizer, guard = guarded()
    weight.grad = torch.ones(4)
    optimizer.step()
    before = weight.detach().clone()
    guard.hold("weight", WHERE, "one")
    assert optimizer.state[weight]["exp_avg"][WHERE].tolist() == [0.0, 0.0]
    for _ in range(3):
        step(weight, optimizer, guard)
        guard.audit_gradients()
    assert torch.equal(weight[WHERE], before[WHERE])
    assert (weight[~WHERE] != before[~WHERE]).all()
    assert optimizer.state[weight]["exp_avg_sq"][WHERE].tolist() == [0.0, 0.0]
    assert guard.audit(3) == 0


def test_one_bit_is_found():
    weight, optimizer, guard = guarded()
    guard.hold("weight", WHERE, "one")
    step(weight, optimizer, guard)
    weight.data[3:].view(torch.int32).bitwise_xor_(1)
    with pytest.raises(InvariantError, match=r"weight \(held weight\): 1; .*held ones|held ones"):
        guard.audit(1)


def test_a_zero_of_the_other_sign_is_found():
    weight, _, guard = guarded(start=0.0)
    guard.hold("weight", WHERE, "one")
    assert guard.audit(0) == 0
    weight.data[3] = -0.0
    with pytest.raises(InvariantError, match="held weight"):
        guard.audit(1)


def test_gradients_that_a_method_adds_do_not_reach_what_is_absent():
    weight = nn.Parameter(torch.full((4,), 0.3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    guard = MaskGuard(slices_of(weight, optimizer), {"weight": WHERE})
    weight.grad = torch.ones(4)
    assert not guard.still() and guard.still(absent=True)
    assert weight.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_what_two_hold_moves_when_both_let_go():
    weight, optimizer, guard = guarded()
    guard.hold("weight", WHERE, "one")
    guard.hold("weight", torch.tensor([True, True, False, False]), "two")
    moved = []
    for owner in ("one", "two"):
        guard.hold("weight", None, owner)
        weight.grad = torch.ones(4)
        before = weight.detach().clone()
        guard.still()
        optimizer.step()
        moved.append((weight != before).tolist())
    assert moved == [[False, False, True, True], [True] * 4]
    assert not guard.holds and guard.audit(2) == 0


def test_a_second_hold_keeps_what_the_first_has_kept():
    weight, optimizer, guard = guarded()
    guard.hold("weight", WHERE, "one")
    step(weight, optimizer, guard)
    guard.hold("weight", ~WHERE, "two")
    now = weight.detach().clone()
    assert torch.equal(now[WHERE], torch.full((2,), 0.3))
    step(weight, optimizer, guard)
    assert torch.equal(weight.detach(), now)


def test_loaded_weights_are_what_is_held_from_then_on():
    weight, optimizer, guard = guarded()
    guard.hold("weight", WHERE, "topology")
    weight.data.fill_(0.7)
    guard.holds.anchor()
    guard.refresh()
    weight.grad = torch.tensor([0.0, 1.0, 1.0, 0.0])
    optimizer.step()
    assert weight[WHERE].tolist() == pytest.approx([0.7, 0.7]) and guard.audit(1) == 0
    guard.release()
    assert guard.holds  # the topology does not let go
