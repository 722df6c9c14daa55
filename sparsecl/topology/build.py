"""From config to topologies: one per masked matrix, from (seed, layer name) alone.

A new graph family is one function of the type `TopologyFn`, one entry of `TOPOLOGIES`, and a block
of the config with the names of its options, if it has any.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.errors import MissingInputError, UserError
from sparsecl.topology import tiles
from sparsecl.topology.brf import brf, shared_index
from sparsecl.topology.bsw import bsw
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.density import allocate
from sparsecl.topology.er import er_bernoulli, er_fixed
from sparsecl.topology.expander import expander
from sparsecl.topology.given import ReadCheckpoint, given_masks
from sparsecl.topology.layer import LayerShape, LayerTopology
from sparsecl.topology.structured import block_diag, nm
from sparsecl.topology.ticket import OpenRun, ticket_masks

TopologyFn = Callable[..., NDArray[np.int64]]
"""(out_features, in_features, *, rho, rng, **options) -> sorted flat indices of the live weights of
one global matrix; see `er_fixed` for the contract. It raises ValueError with a message that begins
with the key at fault, below `topology`."""

TOPOLOGIES: dict[str, TopologyFn] = {
    "er_fixed": er_fixed,
    "er_bernoulli": er_bernoulli,
    "brf": brf,
    "shared_index": shared_index,
    "bsw": bsw,
    "expander": expander,
    "nm": nm,
    "block_diag": block_diag,
}


def build_topologies(
    config: TopologyConfig,
    shapes: Sequence[LayerShape],
    *,
    seed: int,
    read_checkpoint: ReadCheckpoint | None = None,
    open_run: OpenRun | None = None,
) -> dict[str, LayerTopology]:
    """Draw, or read, the topology of every layer.

    The bits of a drawn layer depend on (seed, its name, its shape, its density, the options of its
    kind) and on nothing else: not on the order of `shapes`, the tensor-parallel size or the
    process.

    Args:
        read_checkpoint: gives the dense global weight [O, I] of a layer from a checkpoint of a
            run; for kind from_zeros with such a folder.
        open_run: opens a run or checkpoint; for kind ticket.

    Returns:
        Topology by layer name, in the order of `shapes`; empty for a dense model.

    Raises:
        UserError: if a layer would have no live weight at all, or the graph does not exist for its
            shape and density; DataError or MissingInputError for a file.
    """
    assert len({shape.name for shape in shapes}) == len(shapes), "layer names must be distinct"
    if config.kind == "dense":
        return {}
    if config.kind in ("from_file", "from_zeros"):
        assert config.path is not None
        read = given_masks(
            config.path,
            shapes,
            others_allowed=config.kind == "from_zeros",
            read_checkpoint=read_checkpoint,
        )
        return {shape.name: _given_layer(config, shape, read(shape)) for shape in shapes}
    if config.kind == "ticket":
        if open_run is None:
            raise MissingInputError(
                f"topology.path: {config.path} is a run, which cannot be read here. Write the "
                "masks to a .npz file"
            )
        masks = ticket_masks(config, shapes, seed=seed, open_run=open_run)
        pairs = zip(shapes, masks, strict=True)
        return {shape.name: _given_layer(config, shape, mask) for shape, mask in pairs}
    densities = allocate(config, shapes)
    return {
        shape.name: _drawn_layer(config, shape, densities[shape.name], seed) for shape in shapes
    }


def _drawn_layer(config: TopologyConfig, shape: LayerShape, rho: float, seed: int) -> LayerTopology:
    rng = seeding.stream(seed, "mask", shape.name)
    draw = _with_options(config)
    try:
        edges = draw(shape.out_features, shape.in_features, rho=rho, rng=rng)
        topology = LayerTopology(shape.name, shape.out_features, shape.in_features, edges)
        if config.block is not None and config.kind == "block_diag":
            tiles.check_tiled(topology.mask(), config.block.size)
    except ValueError as error:
        raise UserError(f"topology.{error}. Layer: {_place(shape)}") from None
    if not topology.num_live:
        unit = config.block.size**2 if config.block else 1
        raise UserError(
            f"topology.density: {_place(shape)} would have no live weight at density {rho:g}. "
            f"Use {unit / shape.num_cells:g} or more."
        )
    return topology


def _with_options(config: TopologyConfig) -> Callable[..., NDArray[np.int64]]:
    """The function of the config's kind with its options, on tiles if there is a block."""
    block_name = "brf" if config.kind == "shared_index" else config.kind
    options: Any = getattr(config, block_name, None)
    draw = TOPOLOGIES[config.kind]
    if options is not None:
        draw = functools.partial(draw, **dataclasses.asdict(options))
    # Diagonal blocks are no graph of tiles; where they fall on tile borders, they consist of them.
    if config.block is None or config.kind == "block_diag":
        return draw
    if config.kind == "er_fixed" and config.block.balanced:
        draw = tiles.er_row_balanced
    return functools.partial(tiles.draw_tiles, draw, **dataclasses.asdict(config.block))


def _given_layer(
    config: TopologyConfig, shape: LayerShape, mask: NDArray[np.bool_]
) -> LayerTopology:
    if not mask.any() and config.kind == "ticket":
        raise UserError(
            f"topology.ticket: {_place(shape)} would have no live weight. Prune less, or each "
            "layer by itself: topology.ticket.scope=layer."
        )
    if not mask.any():
        raise UserError(f"topology.path: {_place(shape)} has no live weight in {config.path}")
    if config.block is not None:
        try:
            tiles.check_tiled(mask, config.block.size)
        except ValueError as error:
            raise UserError(f"topology.{error}. Layer: {_place(shape)}") from None
    return LayerTopology.from_mask(shape.name, mask)


def _place(shape: LayerShape) -> str:
    return f"{shape.name} ({shape.out_features} x {shape.in_features})"
