"""The memory ledger: by hand for a tiny model, and against the tensors of real layers."""

import numpy as np
import pytest
import torch

from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelConfig, ModelShape, loss_chunk
from sparsecl.model.memory import Layout, live_index_bytes, memory_per_rank, rank_sizes
from sparsecl.model.shapes import layer_shapes
from sparsecl.sparse.index import LiveIndex
from sparsecl.sparse.linear import SparseLinear
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import BlockConfig, TopologyConfig
from sparsecl.topology.layer import LayerTopology

SHAPE = ModelShape(layers=2, width=8, heads=2, context=4, mlp=32)
# 1536 cells in the blocks, 128 padded rows of width 8, 4 + 5 other rows of width 8.
CELLS, DENSE = 1536, 128 * 8 + 9 * 8


def ledger(density=0.25, layout=None, backends=None, shape=SHAPE, **topology):
    config = TopologyConfig(density=density, **topology)
    topologies = build_topologies(config, layer_shapes(shape), seed=0)
    layout = layout or Layout(zero_stage=0, precision="fp32")
    return memory_per_rank(shape, 100, topologies, config, layout, backends=backends)


@pytest.mark.parametrize("storage", ["masked", "packed"])
@pytest.mark.parametrize(
    ("stage", "precision", "weights", "gradients", "master", "moments"),
    [
        (0, "fp32", 4, 4, 0, 8),
        (0, "bf16", 2, 2, 4, 8),
        (1, "fp32", 4, 4, 1, 2),
        (1, "bf16", 2, 2, 1, 2),
        (2, "fp16", 2, 0.5, 1, 2),
        (3, "bf16", 0.5, 0.5, 1, 2),
        (3, "fp32", 1, 1, 1, 2),
    ],
)
def test_state_by_stage_over_four_ranks(
    storage, stage, precision, weights, gradients, master, moments
):
    layout = Layout(zero_stage=stage, precision=precision, dp_size=4)
    found = ledger(layout=layout, storage=storage)
    # One cell in four lives. A packed model has no others, a masked one a bool for each.
    num = DENSE + (CELLS if storage == "masked" else CELLS // 4)
    expected = [bytes_each * num for bytes_each in (weights, gradients, master, moments)]
    assert [found.weights, found.gradients, found.master, found.moments] == expected
    # Packed: a bitmap of 8 or 32 bytes and one start for each of 4 small and 2 large matrices.
    indices = CELLS if storage == "masked" else CELLS // 8 + 4 * 12
    if storage == "masked" and stage:  # and once more beside the masters, which are cut in four
        indices += CELLS // 4
    assert (found.indices, found.kept, found.anchors) == (indices, 0, 0)
    assert found.state == sum(expected) + indices
    assert found.total == found.state + found.activations + found.transient


@pytest.mark.fault("G10")
def test_fp32_sums_cost_four_bytes_of_what_a_stage_keeps():
    for stage, bytes_each in ((1, 4), (2, 1), (3, 1)):
        for accumulates in (True, False):
            layout = Layout(
                zero_stage=stage, precision="bf16", dp_size=4, accumulates=accumulates,
                sums_in_fp32=True,
            )  # fmt: skip
            assert ledger(layout=layout).gradients == bytes_each * (DENSE + CELLS)


def test_tensor_parallel_ranks_hold_a_half_of_what_is_split():
    layout = Layout(zero_stage=0, precision="fp32", tp_size=2)
    found = ledger(layout=layout)
    assert found.weights == 4 * ((CELLS + 128 * 8) // 2 + 9 * 8)
    assert found.indices == CELLS // 2


def test_the_fullest_tensor_parallel_rank_counts():
    # q: rows 0-3 are one rank's, 4-7 the other's; live are 9 cells of the former, 1 of the latter.
    mask = np.zeros((8, 8), dtype=bool)
    mask[0], mask[1, 0], mask[7, 7] = True, True, True
    topologies = {"layers.0.attention.q": LayerTopology.from_mask("q", mask)}
    config = TopologyConfig(storage="packed")
    layout = Layout(zero_stage=0, precision="fp32", tp_size=2)
    found = memory_per_rank(SHAPE, 100, topologies, config, layout)
    assert found.weights == 4 * ((CELLS - 64 + 128 * 8) // 2 + 9 * 8 + 9)


def test_an_anchor_is_kept_for_every_cell_of_role_update():
    for stage, share in ((0, 1), (2, 4)):
        layout = Layout(zero_stage=stage, precision="bf16", dp_size=4)
        assert ledger(layout=layout, role="update").anchors == 4 * CELLS // share


def test_momentum_is_one_moment_and_plain_sgd_none():
    for num_moments in (0, 1):
        layout = Layout(zero_stage=0, precision="fp32", num_moments=num_moments)
        assert ledger(layout=layout).moments == 4 * num_moments * (CELLS + DENSE)


def test_a_dense_model_keeps_no_index():
    found = ledger(kind="dense")
    assert (found.indices, found.kept, found.weights) == (0, 0, 4 * (CELLS + DENSE))


def test_kept_expansions_are_the_dense_matrices():
    assert ledger(storage="packed", keep_expansion=True).kept == 4 * CELLS
    # A full matrix is a view of its values, and sparse rows expand nothing.
    assert ledger(1.0, storage="packed", keep_expansion=True).kept == 0
    assert ledger(storage="packed", keep_expansion=True, backend="csr").kept == 0


def test_auto_counts_as_dense_until_it_is_known():
    every = [layer.name for layer in layer_shapes(SHAPE)]
    dense = ledger(storage="packed")
    assert ledger(storage="packed", backend="auto") == dense
    chosen = ledger(storage="packed", backend="auto", backends=dict.fromkeys(every, "csr"))
    assert chosen == ledger(storage="packed", backend="csr") != dense


@pytest.mark.parametrize("num_live", [1, 31, 33, 1000, 1055, 1056])
def test_index_is_the_smaller_of_bitmap_and_integers(num_live):
    mask = np.zeros((33, 32), dtype=bool)
    mask.reshape(-1)[:num_live] = True
    expected = {1: 4, 31: 124, 33: 132, 1000: 140, 1055: 140, 1056: 0}[num_live]
    assert live_index_bytes(33 * 32, num_live) == expected
    assert LiveIndex(mask).index_bytes == expected


@pytest.mark.parametrize("storage", ["masked", "packed"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backend": "csr"},
        {"backend": "native"},
        {"backend": "block", "block": BlockConfig(size=4)},
        {"backend": "block", "block": BlockConfig(size=32)},  # works on tiles of 32
        {"backend": "block", "block": BlockConfig(size=64)},
    ],
)
def test_indices_are_those_of_the_layers(storage, settings):
    config = TopologyConfig(density=0.5, storage=storage, **settings)
    model = ModelConfig(preset=None, layers=1, width=128, heads=2, context=4)
    built = build_gpt(model, config, vocab_size=100, seed=0)
    linears = {n: m for n, m in built.named_modules() if isinstance(m, SparseLinear)}
    topologies = {name: linear.topology for name, linear in linears.items()}
    layout = Layout(zero_stage=0, precision="fp32")
    found = memory_per_rank(model.resolved(), 100, topologies, config, layout)
    assert found.indices == sum(linear.index_bytes for linear in linears.values()) > 0
    assert found.weights == 4 * sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_by_hand(checkpointing):
    layout = Layout(
        zero_stage=0,
        precision="bf16",
        micro=3,
        length=2,
        activation_checkpointing=checkpointing,
    )
    stream, hidden = 2 * 6 * 8, 2 * 6 * 32  # bytes of 6 tokens in bf16
    # Both norms in and out, q k v and the attention's output, both sides of the GELU; fp32: two
    # numbers of each norm and one of each head for every token.
    block = 8 * stream + 2 * hidden + 4 * 6 * (4 + 2)
    found = ledger(layout=layout)
    assert found.activations == 2 * (stream if checkpointing else block)
    # In the block: its own parts if made again, gradients of stream and hidden units, dW of `up`
    # and the first half of the embedding's.
    again = block - stream if checkpointing else 0
    in_block = again + stream + hidden + 2 * (32 * 8 + 128 * 8)
    in_head = 2 * stream + 8 * 6 + 3 * 4 * 6 * 128
    at_the_end = 3 * 2 * 128 * 8 - found.activations
    assert found.transient == max(in_block, in_head, at_the_end)


@pytest.mark.parametrize(("precision", "e"), [("fp32", 4), ("bf16", 2)])
def test_a_loss_in_chunks_by_hand(precision, e):
    def at(**changes):
        layout = Layout(zero_stage=0, precision=precision, micro=300, **changes)
        return ledger(layout=layout)

    low = e if e < 4 else 0
    norm = 2 * e * 1200 * 8 + 8 * 1200  # in and out of 1200 tokens, and two numbers of each
    # Logits and softmax of 100 tokens; gradients of features and of the head's 128 rows, in fp32.
    in_head = norm + (8 + low) * 100 * 128 + e * 1200 * 8 + (4 + low) * 128 * 8
    in_block = e * 1200 * (8 + 32) + e * (32 * 8 + 128 * 8)
    found = at(loss_chunk=100)
    assert found.transient == max(in_head, in_block)
    assert found.activations == at().activations
    assert at(loss_chunk=1200).transient == at(loss_chunk=5000).transient
    assert at().transient == norm + 3 * 4 * 1200 * 128


@pytest.mark.parametrize(
    ("asked", "rows", "gpu", "expected"),
    [
        (None, 50304, False, 1024),
        (None, 50304, True, 5120),  # 2^30 / (4 * 50304) = 5336, in steps of 1024
        (None, 50304 // 8, True, 41984),  # 42690
        (None, 128256, True, 4096),  # 2093 would leave a GPU idle
        (0, 50304, True, 0),
        (100, 50304, True, 100),
        (100, 50304, False, 100),
    ],
)
def test_chunks_of_the_loss_are_larger_on_a_gpu(asked, rows, gpu, expected):
    assert loss_chunk(asked, rows=rows, gpu=gpu) == expected


@pytest.mark.parametrize("checkpointing", [False, True])
def test_spread_positions_by_hand(checkpointing):
    layout = Layout(
        zero_stage=0,
        precision="bf16",
        tp_size=2,
        micro=3,
        length=2,
        activation_checkpointing=checkpointing,
        sequence=True,
    )
    stream, inner, hidden = 2 * 6 * 8, 2 * 6 * 4, 2 * 6 * 16  # bytes of 6 tokens on one rank
    own = stream // 2
    # Both norms read 3 of the tokens, two numbers each; what they give is gathered. One head.
    block = 2 * own + 2 * stream + 4 * inner + 2 * hidden + 4 * 3 * 4 + 4 * 6
    found = ledger(layout=layout)
    assert found.activations == 2 * (own if checkpointing else block)
    again = block - own if checkpointing else 0
    # Gradients: of the own stream, of what was gathered, and of hidden units.
    in_block = again + own + stream + hidden + 2 * (16 * 8 + 64 * 8)
    in_head = own + stream + 8 * 3 + 4 * 6 * 64
    at_the_end = 3 * 2 * 64 * 8 - found.activations
    assert found.transient == max(in_block, in_head, at_the_end)
    # One rank alone has nothing to spread.
    one = [ledger(layout=Layout(zero_stage=0, precision="bf16", sequence=s)) for s in (True, False)]
    assert one[0] == one[1]


def test_packed_layers_expand_one_matrix_at_a_time_and_sparse_rows_none():
    # So short a batch that the matrices decide; the embedding of 128 rows is smaller than they.
    shape = ModelShape(layers=1, width=256, heads=2, context=4, mlp=1024)
    layout = Layout(zero_stage=0, precision="fp32", length=1)
    cells, live = 1024 * 256, 1024 * 256 // 4
    dense = ledger(shape=shape, layout=layout, kind="dense").transient
    assert ledger(shape=shape, layout=layout).transient == dense
    packed = ledger(shape=shape, layout=layout, storage="packed").transient
    assert packed == dense + 4 * live
    block = {"block": BlockConfig(size=16), "backend": "block", "storage": "packed"}
    gpu = Layout(zero_stage=0, precision="fp32", length=1, gpu=True)
    assert ledger(shape=shape, layout=gpu, **block).transient == dense - 4 * (cells - live)


def test_weights_in_bf16_are_those_of_a_real_model():
    model = build_gpt(
        ModelConfig(preset=None, layers=2, width=8, heads=2, context=4),
        TopologyConfig(density=0.25, storage="packed"),
        vocab_size=100,
        seed=0,
    ).to(torch.bfloat16)
    layout = Layout(zero_stage=0, precision="bf16")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert ledger(storage="packed", layout=layout).weights == weights


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "master", "moments"),
    [(0, 2, 2, 4, 8), (1, 2, 2, 1, 2), (2, 2, 0.5, 1, 2), (3, 0.5, 0.5, 1, 2)],
)
def test_parts_that_were_added_are_parameters_like_others(
    stage, weights, gradients, master, moments
):
    layout = Layout(zero_stage=stage, precision="bf16", dp_size=4)
    config = TopologyConfig(density=0.25)
    topologies = build_topologies(config, layer_shapes(SHAPE), seed=0)
    sizes = {"added": (40, 24)}
    found, plain = (
        memory_per_rank(SHAPE, 100, topologies, config, layout, **more) for more in (sizes, {})
    )
    for part, size in (
        ("weights", weights), ("gradients", gradients), ("master", master), ("moments", moments),
    ):  # fmt: skip
        assert getattr(found, part) - getattr(plain, part) == 64 * size


@pytest.mark.parametrize("storage", ["masked", "packed"])
@pytest.mark.parametrize(("stage", "share"), [(0, 1), (2, 4), (3, 4)])
def test_sizes_of_a_rank_by_hand(storage, stage, share):
    layout = Layout(zero_stage=stage, precision="bf16", dp_size=4, micro=4, replayed=0.5)
    config = TopologyConfig(density=0.25, storage=storage)
    topologies = build_topologies(config, layer_shapes(SHAPE), seed=0)
    found = rank_sizes(SHAPE, 100, topologies, config, layout, added=(40,), num_phases=3)
    sparse = CELLS if storage == "masked" else CELLS // 4
    assert found.slices == (DENSE + sparse + 40) // share
    assert found.sparse_slices == sparse // share == sum(found.slices_by_kind.values())
    assert found.slices_by_kind["up"] == sparse // 3 // share
    assert (found.anchored, found.cells, found.num_phases) == (0, CELLS, 3)
    # The embedding is the largest; a flat partition may hold all of it, ZeRO 3 splits each.
    parts = {0: 1024, 2: min(1024, found.slices), 3: 256}
    assert found.largest_slice == parts[stage]
    # Six sequences of 4 tokens, two of them again; 128 rows of the embedding.
    assert found.tokens == 24 and found.kept_logits == 4 * 24 * 128
    memory = memory_per_rank(SHAPE, 100, topologies, config, layout, added=(40,))
    # A copy is not projected: the byte of each cell of the shard is the group's alone.
    masks = found.sparse_slices if storage == "masked" and stage else 0
    assert found.copy == 2 * (DENSE + sparse + 40) + memory.indices - masks
    six = Layout(zero_stage=stage, precision="bf16", dp_size=4, micro=6)
    alone = memory_per_rank(SHAPE, 100, topologies, config, six)
    assert memory.activations == alone.activations


def test_role_update_holds_values_that_a_method_need_not_hold_again():
    config = TopologyConfig(density=0.25, role="update")
    topologies = build_topologies(config, layer_shapes(SHAPE), seed=0)
    layout = Layout(zero_stage=1, precision="bf16", dp_size=4)
    assert rank_sizes(SHAPE, 100, topologies, config, layout).anchored == CELLS // 4
