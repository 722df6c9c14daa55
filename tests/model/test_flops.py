"""Cost formulas, by hand and against a built model."""

from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig, ModelShape
from sparsecl.model.flops import (
    ParameterCounts,
    count_parameters,
    multiplied_weights,
    training_flops_per_token,
)
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig

SHAPE = ModelShape(layers=2, width=8, heads=2, context=4, mlp=32)


def test_gpt2_small_has_124m_parameters():
    shape = ModelConfig(preset="100m").resolved()
    counts = count_parameters(shape, 50257, {})
    # The published 124439808 include biases: per layer 9 widths in linears (3 qkv, 1 o, 4 up,
    # 1 down) and 2 in norms, and 1 in the last norm. This model has none.
    biases = 12 * (9 + 2) * 768 + 768
    assert counts.masked_total == 12 * 12 * 768 * 768
    assert counts.total == 124_439_808 - biases
    assert counts.density_masked == counts.density_model == 1.0


def test_counts_equal_those_of_a_model():
    config = ModelConfig(preset=None, layers=2, width=16, heads=4, context=8)
    topology = TopologyConfig(density=0.25)
    model = build_gpt(config, topology, vocab_size=128, seed=0)
    shape = config.resolved()
    topologies = build_topologies(topology, layer_shapes(shape), seed=0)
    counts = count_parameters(shape, 128, topologies)  # 128: no padding rows
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.live == sum(int((p != 0).sum()) for p in model.parameters())
    assert counts.density_masked == 0.25
    assert 0.25 < counts.density_model < 1.0


def test_flops_by_hand():
    counts = ParameterCounts(masked_total=1000, masked_live=100, embedding=50, other=7)
    attention = 12 * 2 * 8 * 4
    flops = training_flops_per_token(SHAPE, counts)
    assert flops.useful == 6 * 100 + 6 * 50 + attention
    assert flops.dense == flops.executed == 6 * 1000 + 6 * 50 + attention
    update = training_flops_per_token(SHAPE, counts, role="update")
    assert update.useful == 4 * 1000 + 2 * 100 + 6 * 50 + attention
    assert update.dense == flops.dense
    more = ParameterCounts(masked_total=1000, masked_live=100, embedding=50, other=7, added=30)
    assert (more.live, more.total) == (counts.live + 30, counts.total + 30)
    for role in ("topology", "update"):
        one, two = (training_flops_per_token(SHAPE, c, role=role) for c in (counts, more))
        for part in ("useful", "executed", "dense"):
            assert getattr(two, part) == getattr(one, part) + 6 * 30
    sparse = training_flops_per_token(SHAPE, counts, multiplied=100)
    assert sparse.executed == sparse.useful == flops.useful


def test_only_sparse_backends_leave_out_absent_weights():
    layers = layer_shapes(SHAPE)
    topologies = build_topologies(TopologyConfig(density=0.25), layers, seed=0)
    assert multiplied_weights(SHAPE, topologies, {}) == 2 * 12 * 8 * 8
    for backend in ("native", "csr", "block"):
        every = dict.fromkeys(topologies, backend)
        assert multiplied_weights(SHAPE, topologies, every) == 2 * 12 * 8 * 8 // 4
    # One up matrix of 32 x 8 on csr, one that is dense whatever is said of it.
    mixed = {"layers.0.mlp.up": "csr", "layers.1.mlp.up": "dense"}
    assert multiplied_weights(SHAPE, topologies, mixed) == 2 * 12 * 8 * 8 - 192
    assert multiplied_weights(SHAPE, {}, mixed) == 2 * 12 * 8 * 8
