"""SET: what is dropped, what grows, and how much."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparsecl.methods.dst.config import SetConfig
from sparsecl.methods.dst.set import Set


def test_the_weakest_of_each_sign_go():
    values = torch.tensor([0.5, -0.1, 0.2, -3.0, 0.1, -0.4, 2.0, -0.2])
    dropped = Set(SetConfig(drop_fraction=0.5)).drop(values)
    assert sorted(dropped.tolist()) == [1, 2, 4, 7]  # 0.1 and 0.2; -0.1 and -0.2


def test_signs_count_apart():
    """One negative weight among many positive ones stays, however small: floor(0.3 * 1) = 0."""
    values = torch.cat([torch.linspace(1, 2, 10), torch.tensor([-0.001])])
    assert Set(SetConfig(drop_fraction=0.3)).drop(values).tolist() == [0, 1, 2]


def test_fraction_zero_is_the_identity():
    assert Set(SetConfig(drop_fraction=0.0)).drop(torch.randn(20)).numel() == 0


def context(step: int):
    layer = SimpleNamespace(tp_rank=0)
    return SimpleNamespace(
        progress=SimpleNamespace(step=step),
        sparse={"w": SimpleNamespace(layer=layer)},
        generator=lambda *names: np.random.default_rng(abs(hash(names)) % 2**32),
    )


def test_growth_is_uniform_over_absent_cells():
    method = Set(SetConfig())
    absent = torch.arange(100, 120)
    counts = torch.zeros(120)
    for step in range(400):
        grown = method.grow(context(step), "w", absent, 5)
        assert grown.unique().numel() == 5
        counts[grown] += 1
    assert counts[:100].sum() == 0
    assert 60 < counts[100:].min() and counts[100:].max() < 145  # 100 +- 4.6 sd


def test_no_more_grows_than_there_is_room():
    grown = Set(SetConfig()).grow(context(0), "w", torch.tensor([3, 9]), 5)
    assert sorted(grown.tolist()) == [3, 9]


@pytest.mark.parametrize("fields", [{"every": 0}, {"drop_fraction": 1.0}, {"drop_fraction": -0.1}])
def test_bad_options(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        SetConfig(**fields)
