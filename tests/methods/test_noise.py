"""Noise by place: any part of it can be drawn alone."""

import pytest
import torch

from sparsecl.methods.noise import mixed, normal


def test_the_bits_are_those_of_splitmix64():
    """First outputs from state 0, as the public code of the authors gives them."""
    found = [int(value) % 2**64 for value in mixed(0, torch.arange(3))]
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mixed(2**64 - 1, torch.tensor([5])).equal(mixed(-1, torch.tensor([5])))


def test_a_part_is_drawn_alone():
    whole = normal(9, torch.arange(200_000))
    places = torch.tensor([0, 7, 65_535, 65_536, 199_999])
    assert normal(9, places).equal(whole[places])
    assert normal(9, torch.arange(70_000, 150_000)).equal(whole[70_000:150_000])
    assert normal(9, torch.empty(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1])
def test_it_is_standard_normal(key):
    x = normal(key, torch.arange(400_000)).double()
    moments = [float((x**k).mean()) for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0.0, 1.0, 0.0, 3.0], abs=0.04)  # 3 sigma of the fourth
    assert bool(torch.isfinite(x).all())
    neighbours = float((x[1:] * x[:-1]).mean())
    keys = float((x * normal(key + 1, torch.arange(400_000))).mean())
    assert [neighbours, keys] == pytest.approx([0.0, 0.0], abs=0.006)
