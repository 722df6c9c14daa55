"""Density over layers: the reference vector of RigL's rule, budgets, saturation, overrides."""

import pytest

from sparsecl.errors import UserError
from sparsecl.topology.config import OverrideConfig, TopologyConfig
from sparsecl.topology.density import allocate, erk, uniform
from sparsecl.topology.layer import LayerShape

SQUARE = LayerShape("square", "q", 768, 768)
WIDE = LayerShape("wide", "up", 3072, 768)


def test_uniform():
    assert uniform([SQUARE, WIDE], 0.1) == {"square": 0.1, "wide": 0.1}


def test_erk_reference_vector():
    # Budget 294912, eps 54.857; the reference code rounds dead weights down, hence 1e-6.
    densities = erk([SQUARE, WIDE], 0.1)
    assert densities["square"] == pytest.approx(0.14286, abs=1e-5)
    assert densities["wide"] == pytest.approx(0.08929, abs=1e-5)
    assert densities["square"] / densities["wide"] == pytest.approx(1.6)


@pytest.mark.parametrize("rho", [0.01, 0.3, 0.7, 0.95, 1.0])
def test_erk_spends_the_budget(rho):
    shapes = [SQUARE, WIDE, LayerShape("small", "k", 8, 8), LayerShape("tiny", "v", 2, 4)]
    densities = erk(shapes, rho)
    assert all(0.0 < density <= 1.0 for density in densities.values())
    spent = sum(densities[shape.name] * shape.num_cells for shape in shapes)
    assert spent == pytest.approx(rho * sum(s.num_cells for s in shapes), abs=len(shapes))


def test_erk_fills_small_layers_first():
    densities = erk([SQUARE, LayerShape("tiny", "v", 2, 4)], 0.1)
    assert densities["tiny"] == 1.0
    assert densities["square"] < 0.1


def test_power_of_erk():
    assert erk([SQUARE, WIDE], 0.1, power=0.0)["wide"] == pytest.approx(0.1, abs=1e-6)
    squared = erk([SQUARE, WIDE], 0.1, power=2.0)
    assert squared["square"] / squared["wide"] == pytest.approx(1.6**2)
    spent = squared["square"] * SQUARE.num_cells + squared["wide"] * WIDE.num_cells
    assert spent == pytest.approx(0.1 * (SQUARE.num_cells + WIDE.num_cells), abs=2)


BLOCKS = [
    LayerShape(f"layers.{block}.{place}", kind, *size)
    for block in range(2)
    for place, kind, size in (("attention.q", "q", (8, 8)), ("mlp.up", "up", (32, 8)))
]


def test_er_is_erk_for_matrices():
    er = allocate(TopologyConfig(density=0.2, allocation="er"), BLOCKS)
    assert er == erk(BLOCKS, 0.2)
    assert er == allocate(TopologyConfig(density=0.2, allocation="erk"), BLOCKS)
    assert er != allocate(TopologyConfig(density=0.2, allocation="erk", erk_power=2.0), BLOCKS)


def test_later_overrides_win():
    overrides = (
        OverrideConfig(layers=(1,), density=0.5),
        OverrideConfig(kinds=("up",), density=1.0),
    )
    densities = allocate(TopologyConfig(density=0.2, overrides=overrides), BLOCKS)
    assert [densities[shape.name] for shape in BLOCKS] == [0.2, 1.0, 0.5, 1.0]


def test_overridden_layers_are_outside_the_budget():
    overrides = (OverrideConfig(kinds=("q",), layers=(0,), density=1.0),)
    densities = allocate(TopologyConfig(density=0.2, allocation="er", overrides=overrides), BLOCKS)
    assert densities == erk(BLOCKS[1:], 0.2) | {BLOCKS[0].name: 1.0}


def test_an_override_without_a_layer_is_an_error():
    overrides = (OverrideConfig(density=0.5), OverrideConfig(kinds=("up",), layers=(7,), density=1))
    words = r"^topology\.overrides\.1: .*\['up'\].*\[7\].* blocks 0 to 1"
    with pytest.raises(UserError, match=words):
        allocate(TopologyConfig(overrides=overrides), BLOCKS)


def test_dense_ignores_density():
    assert TopologyConfig(kind="dense", density=0.1).rho == 1.0
    assert TopologyConfig(kind="er_fixed", density=0.1).rho == 0.1


@pytest.mark.parametrize(
    ("density", "words"),
    [
        (85.0, "85% sparsity write density 0.15"),
        (10.0, "write 0.1"),
        (0.0, "got 0"),
        (-0.2, "got -0.2"),
        (float("nan"), "got nan"),
    ],
)
def test_messages(density, words):
    with pytest.raises(ValueError, match="^density must be in") as error:
        TopologyConfig(density=density)
    assert words in str(error.value)
