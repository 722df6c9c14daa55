"""From config to topologies: one per masked matrix, from (seed, layer name) alone.

A new graph family is one function of the type `TopologyFn` and one entry of `TOPOLOGIES`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.errors import UserError
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.density import ALLOCATIONS
from sparsecl.topology.er import er_bernoulli, er_fixed
from sparsecl.topology.layer import LayerShape, LayerTopology


class TopologyFn(Protocol):
    """Draws the live weights of one global matrix; see `er_fixed` for the contract."""

    def __call__(
        self, out_features: int, in_features: int, *, rho: float, rng: np.random.Generator
    ) -> NDArray[np.int64]: ...


TOPOLOGIES: dict[str, TopologyFn] = {"er_fixed": er_fixed, "er_bernoulli": er_bernoulli}


def build_topologies(
    config: TopologyConfig, shapes: Sequence[LayerShape], *, seed: int
) -> dict[str, LayerTopology]:
    """Draw the topology of every layer.

    The bits of a layer depend on (seed, its name, its shape, its density) and on nothing else: not
    on the order of `shapes`, the tensor-parallel size or the process.

    Returns:
        Topology by layer name, in the order of `shapes`; empty for a dense model.

    Raises:
        UserError: if a layer would have no live weight at all.
    """
    if config.kind == "dense":
        return {}
    densities = ALLOCATIONS[config.allocation](shapes, config.rho)
    assert len(densities) == len(shapes), "layer names must be distinct"
    return {
        shape.name: _build_layer(config.kind, shape, densities[shape.name], seed)
        for shape in shapes
    }


def _build_layer(kind: str, shape: LayerShape, rho: float, seed: int) -> LayerTopology:
    rng = seeding.stream(seed, "mask", shape.name)
    edges = TOPOLOGIES[kind](shape.out_features, shape.in_features, rho=rho, rng=rng)
    if edges.size == 0:
        raise UserError(
            f"topology.density: {shape.name} ({shape.out_features} x {shape.in_features}) would "
            f"have no live weight at density {rho:g}. Use {1 / shape.num_cells:g} or more."
        )
    return LayerTopology(shape.name, shape.out_features, shape.in_features, edges)
