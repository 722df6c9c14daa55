"""Initial weights: scales, the correction for density, the same bits at every tp size."""

import numpy as np
import pytest
import torch

from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig
from sparsecl.model.init import draw, fill_linear, mask_and_correct
from sparsecl.sparse.linear import ColumnParallelSparseLinear, RowParallelSparseLinear
from sparsecl.sparse.registry import sparse_parameters
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerShape, LayerTopology

TINY = ModelConfig(preset=None, layers=2, width=16, heads=4, context=8)


def state(model_config=TINY, **topology):
    model = build_gpt(model_config, TopologyConfig(**topology), vocab_size=100, seed=7)
    return dict(model.state_dict())


def test_correction_by_hand():
    # Row 0 has two live inputs of four: factor sqrt(2). Row 1 has none. Row 2 is full: factor 1.
    topology = LayerTopology("hand", 3, 4, np.array([1, 3, 8, 9, 10, 11]))
    values = np.ones((3, 4), dtype=np.float32)
    mask_and_correct(values, topology, corrected=True)
    root = np.float32(np.sqrt(2.0))
    assert values.tolist() == [[0, root, 0, root], [0, 0, 0, 0], [1, 1, 1, 1]]
    values = np.ones((3, 4), dtype=np.float32)
    mask_and_correct(values, topology, corrected=False)
    assert values.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_correction_keeps_the_scale_of_outputs():
    shape = LayerShape("layers.0.mlp.up", "up", 256, 1024)
    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    for density in (1.0, 0.05):
        topology = build_topologies(TopologyConfig(density=density), [shape], seed=1)[shape.name]
        linear = ColumnParallelSparseLinear(shape, topology)
        fill_linear(linear, seed=1, std=0.02, corrected=True)
        # Expected std: 0.02 * sqrt(1024); 131072 outputs that share weights, hence 5 %.
        assert linear(x).std().item() == pytest.approx(0.64, rel=0.05)


def test_scales_of_a_dense_model():
    shape = ModelConfig(preset=None, layers=2, width=128, heads=4, context=64)
    weights = state(shape, kind="dense")
    for name, value in weights.items():
        if "norm" in name:
            assert (value == 1).all()
            continue
        residual = name.endswith(("attention.o.weight", "mlp.down.weight"))
        if name == "embedding.weight":
            value = value[:100]
        assert value.std().item() == pytest.approx(0.01 if residual else 0.02, rel=0.05), name
        assert abs(value.mean().item()) < 0.001, name


def test_padding_rows_are_zero():
    embedding = state(kind="dense")["embedding.weight"]
    assert embedding.shape == (128, 16)
    assert (embedding[100:] == 0).all()
    assert (embedding[:100] != 0).all()


def test_all_live_mask_gives_the_bits_of_a_dense_model():
    dense, full = state(kind="dense"), state(density=1.0)
    assert dense.keys() == full.keys()
    assert all(torch.equal(dense[name], full[name]) for name in dense)


@pytest.mark.parametrize("corrected", [True, False])
def test_sparse_model_is_the_scaled_slice_of_the_dense_one(corrected):
    config = ModelConfig(
        preset=None, layers=2, width=16, heads=4, context=8, density_corrected_init=corrected
    )
    model = build_gpt(config, TopologyConfig(density=0.25), vocab_size=100, seed=7)
    dense = state(kind="dense")
    masked = sparse_parameters(model)
    assert len(masked) == 12
    for name, value in model.state_dict().items():
        if name not in masked:
            assert torch.equal(value, dense[name])
            continue
        live = ~masked[name].dead
        assert (value[~live] == 0).all() and not value.signbit()[~live].any()
        fan_in = live.sum(1, keepdim=True).clamp(min=1)
        factor = (live.shape[1] / fan_in).sqrt() if corrected else 1.0
        torch.testing.assert_close(value, dense[name] * live * factor)


def test_role_update_starts_as_the_dense_model():
    dense, update = state(kind="dense"), state(density=0.25, role="update")
    assert all(torch.equal(dense[name], update[name]) for name in dense)


def test_seed_and_name_decide():
    one = draw("a", (4, 4), seed=0, std=1.0)
    assert (one == draw("a", (4, 4), seed=0, std=1.0)).all()
    assert (one != draw("b", (4, 4), seed=0, std=1.0)).all()
    assert (one != draw("a", (4, 4), seed=1, std=1.0)).all()
    assert one.dtype == np.float32


@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("kind", [ColumnParallelSparseLinear, RowParallelSparseLinear])
def test_slices_join_to_the_same_global_weight(kind, tp_size):
    shape = LayerShape("layers.0.mlp.up", "up", 16, 8)
    topology = build_topologies(TopologyConfig(density=0.3), [shape], seed=1)[shape.name]
    whole = draw("layers.0.mlp.up.weight", (16, 8), seed=1, std=0.02)
    mask_and_correct(whole, topology, corrected=True)
    parts = []
    for rank in range(tp_size):
        linear = kind(shape, topology, tp_rank=rank, tp_size=tp_size)
        fill_linear(linear, seed=1, std=0.02, corrected=True)
        parts.append(linear.weight.detach())
    assert torch.equal(torch.cat(parts, kind.partition_dim), torch.from_numpy(whole))
