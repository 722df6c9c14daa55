"""Importing costs nothing; drawing gives the graph that a run of this seed and name would get."""

import subprocess
import sys

import numpy as np
import pytest

import sparsecl
from sparsecl.errors import UserError
from sparsecl.topology.build import TOPOLOGIES, build_topologies
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerShape

LOOK = """
import sys, sparsecl
assert not {"torch", "numpy", "pydantic"} & sys.modules.keys(), "import"
assert dir(sparsecl).count("mask_guard") == 1
sparsecl.draw("er_fixed", 8, 6, density=0.5)
assert "torch" not in sys.modules, "draw"
sparsecl.mask_guard
assert "torch" in sys.modules
assert not {"deepspeed", "megatron", "transformers"} & sys.modules.keys(), "guard"
"""


def test_importing_loads_nothing_and_drawing_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_graph_is_that_of_a_run() -> None:
    shape = LayerShape("layers.0.mlp.up", "up", 12, 8)
    run = build_topologies(TopologyConfig(kind="brf", density=0.25), [shape], seed=3)
    drawn = sparsecl.draw("brf", 12, 8, density=0.25, seed=3, name="layers.0.mlp.up")
    assert drawn.digest == run["layers.0.mlp.up"].digest
    assert drawn.mask().shape == (12, 8) and drawn.num_live == 24


@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_every_kind_has_a_graph_of_any_shape(kind: str) -> None:
    drawn = sparsecl.draw(kind, 32, 16, density=0.25, **({"m": 4} if kind == "nm" else {}))
    again = sparsecl.draw(kind, 32, 16, density=0.25, **({"m": 4} if kind == "nm" else {}))
    assert drawn.density == pytest.approx(0.25, abs=0.1) and drawn.digest == again.digest


def test_options_reach_the_graph() -> None:
    near, far = (sparsecl.draw("brf", 16, 16, density=0.2, r=r).mask() for r in (0.0, 1.0))
    assert (near != far).any()
    tiles = sparsecl.draw("er_fixed", 8, 8, density=0.5, block=4).mask().reshape(2, 4, 2, 4)
    assert np.isin(tiles.sum(axis=(1, 3)), (0, 16)).all()


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("circle", 8, 8), {}, "kind=circle: .*Known: er_fixed, "),
        (("dense", 8, 8), {}, "kind=dense"),
        (("brf", 8, 8), {"beta": 0.1}, "beta is no option of brf. Known: r, degrees"),
        (("er_fixed", 8, 8), {"r": 0.1}, "r is no option of er_fixed. Known: none"),
        (("er_fixed", 8, 8), {"density": 10}, "density must be in .*write 0.1"),
        (("er_fixed", 0, 8), {}, "out_features must be >= 1, got 0"),
        (("er_fixed", 8, 8), {"density": 0.001}, "no live weight"),
        (("bsw", 8, 8), {"beta": 2.0}, "beta must be >= 0 and <= 1"),
        (("er_fixed", 8, 8), {"block": 3}, "block"),
        (("er_fixed", 8, 8), {"allocation": "all"}, "allocation=all is unknown"),
    ],
)
def test_mistakes_are_told(arguments: tuple, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sparsecl.draw(*arguments, **options)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        sparsecl.prune  # noqa: B018
