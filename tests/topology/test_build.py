"""Topologies of a model: slices, digests, independence of order and process, the summary."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sparsecl.errors import UserError
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerShape, LayerTopology
from sparsecl.topology.report import describe, summarize, topology_digest

SHAPES = [
    LayerShape("layers.0.attention.q", "q", 16, 16),
    LayerShape("layers.0.mlp.up", "up", 64, 16),
    LayerShape("layers.0.mlp.down", "down", 16, 64),
]
CONFIG = TopologyConfig(kind="er_fixed", density=0.25)

# 2 x 4 by hand: row 0 lives at columns 1 and 3, row 1 nowhere.
HAND = LayerTopology("hand", 2, 4, np.array([1, 3]))


def test_by_hand():
    assert HAND.mask().tolist() == [[False, True, False, True], [False] * 4]
    assert (HAND.num_live, HAND.density) == (2, 0.25)
    assert HAND.row_degrees().tolist() == [2, 0]
    assert HAND.column_degrees().tolist() == [0, 1, 0, 1]
    assert HAND.isolated_rows.tolist() == [1]
    assert HAND.isolated_columns.tolist() == [0, 2]
    assert HAND.shard(1, 1, 2).tolist() == [[False, True], [False, False]]
    assert HAND.shard(0, 0, 2).tolist() == [[False, True, False, True]]


def test_edges_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        HAND.edges[0] = 0


@pytest.mark.parametrize("edges", [[3, 1], [1, 1], [-1, 2], [2, 8]])
def test_broken_edges_are_refused(edges):
    with pytest.raises(AssertionError):
        LayerTopology("broken", 2, 4, np.array(edges))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_shards_join_to_the_global_mask(tp_size, dim):
    for topology in build_topologies(CONFIG, SHAPES, seed=3).values():
        parts = [topology.shard(dim, rank, tp_size) for rank in range(tp_size)]
        assert all(part.flags.c_contiguous for part in parts)
        assert (np.concatenate(parts, axis=dim) == topology.mask()).all()


def test_bits_do_not_depend_on_the_order_of_layers():
    one = build_topologies(CONFIG, SHAPES, seed=3)
    two = build_topologies(CONFIG, SHAPES[::-1], seed=3)
    assert {name: t.digest for name, t in one.items()} == {n: t.digest for n, t in two.items()}
    assert topology_digest(one) == topology_digest(two)


def test_seed_layer_and_kind_change_the_bits():
    base = build_topologies(CONFIG, SHAPES, seed=3)
    other = build_topologies(CONFIG, SHAPES, seed=4)
    assert topology_digest(base) != topology_digest(other)
    twins = [LayerShape("a", "q", 16, 16), LayerShape("b", "k", 16, 16)]
    drawn = build_topologies(CONFIG, twins, seed=3)
    assert drawn["a"].digest != drawn["b"].digest


def test_digest_depends_on_the_shape():
    edges = np.array([1, 3])
    assert LayerTopology("x", 2, 4, edges).digest != LayerTopology("x", 4, 2, edges).digest
    assert LayerTopology("y", 2, 4, edges).digest == HAND.digest


def test_digest_is_the_same_in_another_process():
    script = (
        "from tests.topology.test_build import *\n"
        "print(topology_digest(build_topologies(CONFIG, SHAPES, seed=3)))"
    )
    for hash_seed in ("0", "123"):
        answer = subprocess.run(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.strip() == topology_digest(build_topologies(CONFIG, SHAPES, seed=3))


def test_bits_of_this_version():
    # Frozen: a checkpoint holds digests, and a change of the generator must not go unnoticed.
    edges = build_topologies(CONFIG, [LayerShape("a", "q", 4, 4)], seed=0)["a"].edges
    assert edges.tolist() == [1, 9, 10, 15]


def test_erk_gives_each_layer_its_own_count():
    built = build_topologies(TopologyConfig(density=0.25, allocation="erk"), SHAPES, seed=0)
    assert built["layers.0.attention.q"].density > built["layers.0.mlp.up"].density
    total = sum(topology.num_live for topology in built.values())
    assert total == pytest.approx(0.25 * sum(s.num_cells for s in SHAPES), abs=len(SHAPES))


def test_dense_has_no_topologies():
    config = TopologyConfig(kind="dense")
    assert build_topologies(config, SHAPES, seed=0) == {}
    assert describe(config, {}) == "dense: every weight is live"


def test_an_empty_layer_is_a_user_error():
    shapes = [LayerShape("layers.0.mlp.up", "up", 4, 4)]
    with pytest.raises(UserError, match=r"topology\.density: layers\.0\.mlp\.up .* 0\.01"):
        build_topologies(TopologyConfig(density=0.01), shapes, seed=0)


def test_summary():
    row = summarize({"hand": HAND})[0]
    assert (row.num_live, row.num_isolated_rows, row.num_isolated_columns) == (2, 1, 2)
    assert (row.row_degree_min, row.row_degree_max) == (0, 2)
    assert (row.column_degree_min, row.column_degree_max) == (0, 1)
    line = describe(CONFIG, build_topologies(CONFIG, SHAPES, seed=3))
    assert line.startswith("er_fixed rho 0.25: 3 matrices, 576 of 2.3k live, 0 isolated rows, ")
    assert topology_digest(build_topologies(CONFIG, SHAPES, seed=3))[:12] in line
