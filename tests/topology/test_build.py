"""Topologies of a model: every kind on any shape, and bits that depend on names alone."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecl.errors import UserError
from sparsecl.topology.build import TOPOLOGIES, build_topologies
from sparsecl.topology.config import (
    BlockConfig,
    BrfConfig,
    ExpanderConfig,
    NmConfig,
    TopologyConfig,
)
from sparsecl.topology.layer import LayerShape
from sparsecl.topology.report import describe, topology_digest

SHAPES = [
    LayerShape("layers.0.attention.q", "q", 16, 16),
    LayerShape("layers.0.mlp.up", "up", 64, 16),
    LayerShape("layers.0.mlp.down", "down", 16, 64),
]
CONFIG = TopologyConfig(kind="er_fixed", density=0.25)

CONFIGS = {kind: TopologyConfig(kind=kind, density=0.25) for kind in TOPOLOGIES} | {
    "brf_uniform": TopologyConfig(kind="brf", density=0.25, brf=BrfConfig(degrees="uniform")),
    "near_biregular": TopologyConfig(
        kind="expander", density=0.3, expander=ExpanderConfig(form="near_biregular")
    ),
    "xnet": TopologyConfig(kind="expander", density=0.25, expander=ExpanderConfig(form="xnet")),
    "tiles": TopologyConfig(kind="er_fixed", density=0.25, block=BlockConfig(size=4)),
    "brf_tiles": TopologyConfig(kind="brf", density=0.25, block=BlockConfig(size=4)),
}
# A checkpoint holds digests: a change of a generator must not go unnoticed.
FROZEN = {
    "er_fixed": "fd793502",
    "er_bernoulli": "7ddc43c8",
    "brf": "5be4eeea",
    "shared_index": "1e794eba",
    "bsw": "6a68738f",
    "expander": "bef7e85d",
    "nm": "2c2d7aa8",
    "block_diag": "7dd169ee",
    "brf_uniform": "5f82b315",
    "near_biregular": "be8449ae",
    "xnet": "95bfbb5e",
    "tiles": "45e0a1f8",
    "brf_tiles": "133ef61b",
}
DRAWN = [name for name in CONFIGS if name != "block_diag"]


def digests() -> dict[str, str]:
    """Digest of all layers, for every config."""
    return {
        name: topology_digest(build_topologies(config, SHAPES, seed=3))
        for name, config in CONFIGS.items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_slices_join_and_the_order_of_layers_does_not_matter(name):
    forward = build_topologies(CONFIGS[name], SHAPES, seed=3)
    backward = build_topologies(CONFIGS[name], SHAPES[::-1], seed=3)
    assert list(forward) == [shape.name for shape in SHAPES]
    for layer, topology in forward.items():
        assert topology.digest == backward[layer].digest
        for dim, tp_size in ((0, 2), (1, 2), (0, 4), (1, 4)):
            parts = [topology.shard(dim, rank, tp_size) for rank in range(tp_size)]
            assert (np.concatenate(parts, axis=dim) == topology.mask()).all()


@pytest.mark.parametrize("name", DRAWN)
def test_seed_and_layer_name_change_the_bits(name):
    one, two = (build_topologies(CONFIGS[name], SHAPES, seed=seed) for seed in (3, 4))
    assert all(one[layer].digest != two[layer].digest for layer in one)
    twins = [LayerShape("a", "q", 16, 16), LayerShape("b", "k", 16, 16)]
    drawn = build_topologies(CONFIGS[name], twins, seed=3)
    assert drawn["a"].digest != drawn["b"].digest


def test_kinds_have_graphs_of_their_own():
    assert len(set(digests().values())) == len(CONFIGS)


def test_bits_are_the_same_in_another_process():
    script = "from tests.topology.test_build import *\nprint(digests())"
    environment = {"PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == str(digests())


def test_bits_of_one_layer():
    edges = build_topologies(CONFIG, [LayerShape("a", "q", 4, 4)], seed=0)["a"].edges
    assert edges.tolist() == [1, 9, 10, 15]


def test_bits_of_every_kind():
    assert {name: digest[:8] for name, digest in digests().items()} == FROZEN


# Not the multiples that a config asks for: primes, one row, one column.
SIDES = st.sampled_from([1, 2, 3, 4, 7, 8, 12, 13, 24, 31])
ANY_SHAPE = ["er_fixed", "brf", "shared_index", "bsw", "near_biregular"]


@settings(max_examples=60)
@given(
    name=st.sampled_from(ANY_SHAPE),
    out_features=SIDES,
    in_features=SIDES,
    rho=st.sampled_from([0.001, 0.03, 0.1, 0.37, 0.5, 0.9, 1.0]),
)
def test_any_shape_has_the_exact_count(name, out_features, in_features, rho):
    options = {"kind": CONFIGS[name].kind, "expander": CONFIGS[name].expander}
    shape = LayerShape("x", "q", out_features, in_features)
    num_live = round(rho * shape.num_cells)
    config = TopologyConfig(density=rho, **options)
    if num_live == 0:
        with pytest.raises(UserError, match=r"^topology\.density: x .* no live weight"):
            build_topologies(config, [shape], seed=0)
        return
    topology = build_topologies(config, [shape], seed=0)["x"]
    assert topology.num_live == topology.mask().sum() == topology.row_degrees().sum() == num_live


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["er_fixed", "er_bernoulli", "brf", "shared_index", "bsw", "expander"]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    size=st.integers(1, 4),
    rho=st.sampled_from([0.05, 0.2, 0.5, 1.0]),
)
def test_any_grid_is_whole_tiles_without_dead_rows_or_a_way_out(kind, rows, columns, size, rho):
    config = TopologyConfig(kind=kind, density=rho, block=BlockConfig(size=size))
    shape = LayerShape("x", "q", rows * size, columns * size)
    try:
        mask = build_topologies(config, [shape], seed=0)["x"].mask()
    except UserError as error:
        way_out = "balanced: false" if "tiles" in str(error) else "near_biregular"
        assert rho < 1.0 and way_out in str(error) and "x (" in str(error)
        return
    tiles = mask.reshape(rows, size, columns, size)
    assert (tiles == tiles[:, :1, :, :1]).all()
    assert tiles.any(axis=(1, 2, 3)).all()


def test_rows_may_be_empty():
    shape = LayerShape("x", "q", 8, 8)
    topology = build_topologies(TopologyConfig(density=1 / 64), [shape], seed=0)["x"]
    assert (topology.num_live, topology.isolated_rows.size) == (1, 7)


def test_erk_gives_each_layer_its_own_count():
    built = build_topologies(TopologyConfig(density=0.25, allocation="erk"), SHAPES, seed=0)
    assert built["layers.0.attention.q"].density > built["layers.0.mlp.up"].density
    total = sum(topology.num_live for topology in built.values())
    assert total == pytest.approx(0.25 * sum(s.num_cells for s in SHAPES), abs=len(SHAPES))


def test_dense_has_no_topologies():
    config = TopologyConfig(kind="dense")
    assert build_topologies(config, SHAPES, seed=0) == {}
    assert describe(config, {}) == "dense: every weight is live"


NARROW = [LayerShape("layers.0.mlp.up", "up", 4, 6)]


@pytest.mark.fault("N7")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density": 0.01}, r"\.density: layers\.0\.mlp\.up \(4 x 6\) .* 0\.01\. Use 0\.0416"),
        ({"kind": "nm", "density": 0.5, "nm": NmConfig(m=4)}, r"\.nm\.m=4 does not .*mlp\.up \(4"),
        ({"kind": "nm"}, r"\.density 0\.1 times nm\.m=16 .*mlp\.up"),
        ({"kind": "block_diag"}, r"\.density 0\.1: .*0\.5\. Layer: layers\.0\.mlp\.up"),
        ({"kind": "expander"}, r"\.density 0\.1: .*near_biregular\. Layer: layers\.0\.mlp\.up"),
        (
            {"kind": "expander", "expander": ExpanderConfig(form="xnet"), "density": 0.05},
            r"\.density 0\.05: .* smaller side .* Use 0\.166.*Layer: layers\.0",
        ),
        ({"block": BlockConfig(size=4)}, r"\.block\.size=4 does not .*: 2\. Layer: layers\.0"),
        ({"block": BlockConfig(size=2)}, r"\.block\.size=2: density 0\.1 .*Layer: layers\.0"),
        (
            {"density": 0.01, "block": BlockConfig(size=2, balanced=False)},
            r"\.density: .* no live weight at density 0\.01\. Use 0\.1666",
        ),
        (
            {"kind": "block_diag", "density": 0.5, "block": BlockConfig(size=2)},
            r"\.block\.size=2: the graph does not consist of whole tiles\. Layer: layers\.0",
        ),
    ],
)
def test_messages_begin_with_the_key_and_name_the_layer(options, words):
    with pytest.raises(UserError, match="^topology" + words) as error:
        build_topologies(TopologyConfig(**options), NARROW, seed=0)
    assert "\n" not in str(error.value)


# Row: singular values 1 and 2, row degrees, column degrees of one draw at 768 x 768, density 0.05.
# The bulk of the spectrum is the same in every draw within a per cent.
SPECTRA = {
    "er": (TopologyConfig(density=0.05), 39.37, 12.08, (21, 59), (22, 57)),
    "biregular": (TopologyConfig(kind="expander", density=0.05), 38.0, 11.80, (38, 38), (38, 38)),
    "brf 0": (
        TopologyConfig(kind="brf", density=0.05, brf=BrfConfig(r=0.0)),
        38.01,
        37.87,
        (38, 39),
        (37, 39),
    ),
    "brf 0.3": (TopologyConfig(kind="brf", density=0.05), 38.19, 36.89, (38, 39), (25, 51)),
    "brf 1": (
        TopologyConfig(kind="brf", density=0.05, brf=BrfConfig(r=1.0)),
        38.49,
        11.94,
        (38, 39),
        (21, 62),
    ),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_and_degrees_of_known_graphs(name):
    config, first, second, rows, columns = SPECTRA[name]
    shape = LayerShape("layers.0.attention.q", "q", 768, 768)
    topology = build_topologies(config, [shape], seed=0)[shape.name]
    matrix = topology.mask().astype(np.float64)
    squares = np.linalg.eigvalsh(matrix @ matrix.T)
    assert np.sqrt(squares[-1]) == pytest.approx(first, rel=0.03)
    assert np.sqrt(squares[-2]) == pytest.approx(second, rel=0.03)
    for degrees, (low, high) in (
        (topology.row_degrees(), rows),
        (topology.column_degrees(), columns),
    ):
        # The extremes of 768 random degrees move by a few from draw to draw.
        slack = 6 if high - low > 2 else min(1, high - low)
        assert low - slack <= degrees.min() <= low + slack
        assert high - slack <= degrees.max() <= high + slack
