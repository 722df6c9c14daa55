"""Cost formulas, by hand and against a built model."""

import numpy as np
import pytest

from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig, ModelShape
from sparsecl.model.flops import (
    ParameterCounts,
    count_parameters,
    state_bytes_per_rank,
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
    assert flops.dense == 6 * 1000 + 6 * 50 + attention
    update = training_flops_per_token(SHAPE, counts, role="update")
    assert update.useful == 4 * 1000 + 2 * 100 + 6 * 50 + attention
    assert update.dense == flops.dense


# SHAPE: 1536 masked cells, 128 padded rows of width 8, 9 other rows of width 8.
NUM_WEIGHTS = 1536 + 128 * 8 + 9 * 8


@pytest.mark.parametrize(
    ("stage", "precision", "weights", "gradients", "master", "moments"),
    [
        (0, "fp32", 4, 4, 0, 8),
        (0, "bf16", 2, 2, 4, 8),
        (1, "bf16", 2, 2, 1, 2),
        (2, "fp16", 2, 0.5, 1, 2),
        (3, "bf16", 0.5, 0.5, 1, 2),
        (3, "fp32", 1, 1, 1, 2),
    ],
)
def test_bytes_by_stage_over_four_ranks(stage, precision, weights, gradients, master, moments):
    state = state_bytes_per_rank(SHAPE, 100, zero_stage=stage, precision=precision, dp_size=4)
    expected = np.array([weights, gradients, master, moments]) * NUM_WEIGHTS
    assert [state.weights, state.gradients, state.master, state.moments] == expected.tolist()
    assert state.masks == 1536
    assert state.total == expected.sum() + 1536


def test_bytes_under_tensor_parallel():
    state = state_bytes_per_rank(SHAPE, 100, zero_stage=0, precision="fp32", tp_size=2)
    assert state.weights == 4 * ((1536 + 128 * 8) // 2 + 9 * 8)
    assert state.masks == 768
    dense = state_bytes_per_rank(SHAPE, 100, zero_stage=0, precision="fp32", dense=True)
    assert dense.masks == 0
