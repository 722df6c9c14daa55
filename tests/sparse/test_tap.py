"""A dense gradient is that of a twin without a topology, whose absent weights are zero."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from sparsecl.sparse.backends import LinearOptions
from sparsecl.sparse.linear import ColumnParallelSparseLinear, RowParallelSparseLinear
from sparsecl.sparse.native import missing
from sparsecl.sparse.tap import DenseTap
from sparsecl.topology.layer import LayerShape, LayerTopology

SHAPE = LayerShape("w", "up", 32, 16)
BY_ROWS = ("csr",) if missing() else ("native", "csr")
CHOICES = [
    LinearOptions(storage=storage, backend=backend, block_size=8)
    for storage in ("masked", "packed")
    for backend in ("dense", *BY_ROWS, "block")
]
NAMES = [f"{choice.storage}-{choice.backend}" for choice in CHOICES]


def made(options: LinearOptions, **split) -> tuple[ColumnParallelSparseLinear, torch.Tensor]:
    """A layer on tiles of 8 x 8, and its matrix with zeros where it is absent."""
    rng = np.random.default_rng(3)
    tiles = np.zeros((4, 2), dtype=bool)
    tiles[[0, 1, 2, 3], [0, 1, 1, 0]] = True
    mask = tiles.repeat(8, 0).repeat(8, 1)
    kind = split.pop("kind", ColumnParallelSparseLinear)
    layer = kind(SHAPE, LayerTopology.from_mask("w", mask), options=options, **split)
    matrix = torch.from_numpy(np.where(mask, rng.standard_normal(mask.shape), 0)).float()
    weight = matrix.chunk(layer.tp_size, layer.partition_dim)[layer.tp_rank].contiguous()
    layer.fill(weight)
    return layer, weight


def dense_gradient(weight: torch.Tensor, batches: list[torch.Tensor]) -> torch.Tensor:
    twin = weight.clone().requires_grad_()
    for x in batches:
        F.linear(x, twin).tanh().sum().backward()
    assert twin.grad is not None
    return twin.grad


@pytest.mark.parametrize("options", CHOICES, ids=NAMES)
def test_the_sum_over_micro_batches_is_that_of_the_dense_twin(options):
    layer, weight = made(options)
    batches = [torch.randn(3, 5, 16), torch.randn(2, 130, 16)]  # csr folds short ones
    layer.tap = tap = DenseTap()
    for x in batches:
        layer(x.requires_grad_()).tanh().sum().backward()
    wanted = dense_gradient(weight, batches)
    assert tap.total is not None and tap.total.dtype == torch.float32
    torch.testing.assert_close(tap.total, wanted)
    assert (tap.total != 0).all()  # the absent ones too


@pytest.mark.parametrize("options", CHOICES, ids=NAMES)
def test_the_gradient_of_the_weight_is_what_it_is_without_a_tap(options):
    layer, _ = made(options)
    x = torch.randn(4, 16)
    plain = torch.autograd.grad(layer(x).tanh().sum(), layer.weight)[0]
    layer.tap = DenseTap()
    tapped = torch.autograd.grad(layer(x).tanh().sum(), layer.weight)[0]
    assert torch.equal(plain, tapped)


@pytest.mark.parametrize("options", CHOICES, ids=NAMES)
def test_each_rank_has_the_gradient_of_its_slice(options):
    x = torch.randn(6, 16)
    whole = dense_gradient(made(options)[1], [x])
    for rank in range(2):
        layer, _ = made(options, tp_rank=rank, tp_size=2)
        layer.tap = tap = DenseTap()
        layer(x).tanh().sum().backward()
        torch.testing.assert_close(tap.total, whole[rank * 16 : rank * 16 + 16])
        layer, weight = made(options, kind=RowParallelSparseLinear, tp_rank=rank, tp_size=2)
        layer.tap = tap = DenseTap()
        layer(x[:, rank * 8 : rank * 8 + 8]).tanh().sum().backward()
        part = dense_gradient(weight, [x[:, rank * 8 : rank * 8 + 8]])
        torch.testing.assert_close(tap.total, part)


@pytest.mark.parametrize("options", CHOICES, ids=NAMES)
def test_a_pass_that_is_made_again_counts_once(options):
    """Activation checkpointing goes forward twice and backward once."""
    layer, weight = made(options)
    x = torch.randn(4, 16)
    layer.tap = tap = DenseTap()
    y = checkpoint(layer, x.clone().requires_grad_(), use_reentrant=False)
    assert isinstance(y, torch.Tensor)
    y.tanh().sum().backward()
    torch.testing.assert_close(tap.total, dense_gradient(weight, [x]))


def test_lower_precision_is_summed_in_fp32():
    layer, _ = made(LinearOptions())
    layer.to(torch.bfloat16)
    layer.tap = tap = DenseTap()
    x = torch.randn(4, 16, dtype=torch.bfloat16)
    for _ in range(2):
        layer(x).sum().backward()
    assert tap.total is not None and tap.total.dtype == torch.float32
