"""Split layers: slices join to the global layer; the registry lists what is masked."""

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.sparse.backends import LinearOptions
from sparsecl.sparse.linear import (
    ColumnParallelSparseLinear,
    RowParallelSparseLinear,
    mark_tensor_parallel,
)
from sparsecl.sparse.registry import sparse_parameters
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerShape

SHAPE = LayerShape("layers.0.mlp.up", "up", 16, 8)
TOPOLOGY = build_topologies(TopologyConfig(density=0.25), [SHAPE], seed=1)[SHAPE.name]


def slices(kind, tp_size):
    """The layers of all ranks, filled from one global weight; and that weight."""
    weight = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    weight *= torch.from_numpy(TOPOLOGY.mask())
    layers = [kind(SHAPE, TOPOLOGY, tp_rank=r, tp_size=tp_size) for r in range(tp_size)]
    for layer, part in zip(layers, weight.chunk(tp_size, kind.partition_dim), strict=True):
        layer.weight.data.copy_(part)
    return layers, weight


@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("kind", [ColumnParallelSparseLinear, RowParallelSparseLinear])
def test_slices_join_to_the_global_layer(kind, tp_size):
    layers, weight = slices(kind, tp_size)
    dead = np.concatenate([layer.dead.numpy() for layer in layers], axis=kind.partition_dim)
    assert (dead == ~TOPOLOGY.mask()).all()
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    if kind.partition_dim == 0:
        y = torch.cat([layer(x) for layer in layers], dim=-1)
    else:
        # In one process nothing is reduced: the partial sums are added here.
        parts = zip(layers, x.chunk(tp_size, dim=-1), strict=True)
        y = torch.stack([layer(part) for layer, part in parts]).sum(0)
    torch.testing.assert_close(y, x @ weight.T)


def test_dense_layer_has_no_mask():
    layer = ColumnParallelSparseLinear(SHAPE, None)
    assert layer.dead is None
    assert list(layer.state_dict()) == ["weight"]


def test_mask_is_not_saved_and_stays_bool():
    layer = RowParallelSparseLinear(SHAPE, TOPOLOGY).to(torch.bfloat16)
    assert list(layer.state_dict()) == ["weight"]
    assert layer.weight.dtype == torch.bfloat16
    assert layer.dead.dtype == torch.bool


def test_megatron_attributes():
    row = RowParallelSparseLinear(SHAPE, TOPOLOGY).weight
    assert (row.tensor_model_parallel, row.partition_dim) == (True, 1)
    column = ColumnParallelSparseLinear(SHAPE, TOPOLOGY).weight
    assert (column.tensor_model_parallel, column.partition_dim) == (True, 0)
    whole = mark_tensor_parallel(nn.Parameter(torch.zeros(2)), -1)
    assert (whole.tensor_model_parallel, whole.partition_dim) == (False, -1)


def test_registry():
    update = LinearOptions(role="update")
    model = nn.ModuleDict(
        {
            "up": ColumnParallelSparseLinear(SHAPE, TOPOLOGY, tp_rank=1, tp_size=2, options=update),
            "dense": ColumnParallelSparseLinear(SHAPE, None),
            "norm": nn.LayerNorm(8),
        }
    )
    found = sparse_parameters(model)
    assert list(found) == ["up.weight"]
    entry = found["up.weight"]
    assert entry.name == "up.weight"
    assert entry.dead is model["up"].dead
    assert entry.topology is TOPOLOGY
    assert (entry.role, entry.partition_dim) == ("update", 0)
    assert entry.dead.shape == dict(model.named_parameters())["up.weight"].shape
