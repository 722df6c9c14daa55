"""Projection onto the topology: which bits change and which do not."""

import pytest
import torch

from sparsecl.optim.masking import zero_absent

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INTEGERS[tensor.element_size()])


@pytest.mark.fault("N5")
def test_absent_entries_become_plus_zero_whatever_they_were():
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([1.0, nan, -0.0, inf, -2.0, nan, -0.0, -inf])
    dead = torch.tensor([True, True, True, True, False, False, False, False])
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, -2.0, nan, -0.0, -inf])
    zero_absent([values], dead)
    assert torch.equal(bits(values), bits(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_view_inside_a_flat_tensor(dtype):
    flat = torch.randn(1003, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, part = flat.clone(), flat[5:905]
    dead = torch.rand(900, generator=torch.Generator().manual_seed(1)) < 0.6
    expected = before.clone()
    expected[5:905].masked_fill_(dead, 0.0)
    zero_absent([part], dead)
    assert torch.equal(bits(flat), bits(expected))
    assert not torch.equal(bits(flat), bits(before))
