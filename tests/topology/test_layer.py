"""One layer's live set: bits, slices, degrees, digest."""

import numpy as np
import pytest

from sparsecl.topology.layer import LayerTopology

# 2 x 4 by hand: row 0 lives at columns 1 and 3, row 1 nowhere.
HAND = LayerTopology("hand", 2, 4, np.array([1, 3]))


def test_by_hand():
    assert HAND.mask().tolist() == [[False, True, False, True], [False] * 4]
    assert HAND.bits.tolist() == [0b01010000]
    assert HAND.edges.tolist() == [1, 3] and HAND.edges.dtype == np.int64
    assert (HAND.num_live, HAND.density) == (2, 0.25)
    assert HAND.row_degrees().tolist() == [2, 0]
    assert HAND.column_degrees().tolist() == [0, 1, 0, 1]
    assert HAND.isolated_rows.tolist() == [1]
    assert HAND.isolated_columns.tolist() == [0, 2]
    assert HAND.shard(1, 1, 2).tolist() == [[False, True], [False, False]]
    assert HAND.shard(0, 0, 2).tolist() == [[False, True, False, True]]


def test_the_live_set_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        HAND.bits[0] = 0
    HAND.mask()[:] = True  # a copy
    assert HAND.num_live == HAND.mask().sum() == 2


@pytest.mark.parametrize("edges", [[3, 1], [1, 1], [-1, 2], [2, 8]])
def test_broken_edges_are_refused(edges):
    with pytest.raises(AssertionError):
        LayerTopology("broken", 2, 4, np.array(edges))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("shape", [(4, 4), (12, 20), (4, 12)])
def test_shards_join_to_the_global_mask(shape, tp_size, dim):
    # Rows of 4, 12 and 20 cells begin in the middle of a byte.
    mask = np.random.default_rng(0).random(shape) < 0.4
    topology = LayerTopology.from_mask("x", mask)
    parts = [topology.shard(dim, rank, tp_size) for rank in range(tp_size)]
    assert all(part.flags.c_contiguous and part.flags.writeable for part in parts)
    assert (np.concatenate(parts, axis=dim) == mask).all()
    assert (topology.mask() == mask).all()


def test_one_topology_contains_another_by_hand():
    def edges(*cells, rows=2):
        return LayerTopology("layer", rows, 8 // rows, np.array(cells, dtype=np.int64))

    assert edges(0, 3, 7).contains(edges(0, 7)) and edges(0).contains(edges(0))
    assert not edges(0, 7).contains(edges(0, 3)) and not edges(0).contains(edges(0, rows=4))


def test_digest_is_that_of_shape_and_live_set():
    edges = np.array([1, 3])
    assert LayerTopology("x", 4, 2, edges).digest != HAND.digest
    assert LayerTopology("y", 2, 4, edges).digest == HAND.digest
    # Frozen: a checkpoint holds digests. sha256 of 2 and 4 as 8 bytes each, then the byte 0x50.
    assert HAND.digest.startswith("df4860fb99a2")


def test_a_rewired_graph_has_the_same_name_and_another_digest():
    mask = np.zeros((2, 4), dtype=bool)
    mask[1, 2] = True
    moved = HAND.with_mask(mask)
    assert (moved.name, moved.edges.tolist()) == ("hand", [6])
    assert moved.digest != HAND.digest
    assert moved.with_mask(HAND.mask()).digest == HAND.digest
    with pytest.raises(AssertionError):
        HAND.with_mask(mask.T)
