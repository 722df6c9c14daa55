"""Draw a topology for a matrix of any shape. Needs NumPy only.

O = out_features, I = in_features.
"""

import dataclasses
from typing import Any

import numpy as np

from sparsecl.errors import UserError
from sparsecl.topology.build import TOPOLOGIES, build_topologies
from sparsecl.topology.config import (
    BlockConfig,
    BrfConfig,
    BswConfig,
    ExpanderConfig,
    NmConfig,
    TopologyConfig,
)
from sparsecl.topology.csti import csti
from sparsecl.topology.layer import LayerShape, LayerTopology

# kind -> (field of TopologyConfig, class of its options); the other kinds have none.
_OPTIONS: dict[str, tuple[str, Any]] = {
    "brf": ("brf", BrfConfig),
    "shared_index": ("brf", BrfConfig),
    "bsw": ("bsw", BswConfig),
    "expander": ("expander", ExpanderConfig),
    "nm": ("nm", NmConfig),
}


def draw(
    kind: str,
    out_features: int,
    in_features: int,
    *,
    density: float = 0.1,
    seed: int = 0,
    name: str = "layer",
    **options: Any,
) -> LayerTopology:
    """Draw one topology. The bits depend on (seed, name, shape, density, options) alone.

    Args:
        kind: graph family, see TOPOLOGIES.
        density: live weights / all weights, in (0, 1].
        name: two layers of the same shape get different graphs by their names.
        options: those of `topology_config`.

    Returns:
        The topology; `.mask()` is bool [O, I], True = live.

    Raises:
        UserError: a shape, density or option that no such graph has.
    """
    config = topology_config(kind, density=density, **options)
    for side, size in (("out_features", out_features), ("in_features", in_features)):
        if size < 1:
            raise UserError(f"{side} must be >= 1, got {size}")
    # The job of the matrix decides only what overrides match, and there are none here.
    shape = LayerShape(name, "up", out_features, in_features)
    return build_topologies(config, [shape], seed=seed)[name]


def draw_csti(
    features: Any, out_features: int, *, density: float = 0.1, name: str = "layer"
) -> LayerTopology:
    """The topology of a first layer, from the correlations of what it reads (CSTI).

    Args:
        features: [N, I], what the layer is given for N samples; NumPy or a torch tensor. Images are
            flat: `images.reshape(N, -1)`.
        out_features: I, or a whole multiple of it.
        density: live weights / all weights, in (0, 1].

    Returns:
        The topology; `.mask()` is bool [O, I], for `mask_linear`.

    Raises:
        UserError: features, sizes or a density that have no such graph.
    """
    found = features.detach().cpu() if hasattr(features, "detach") else features
    try:
        values = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"features must be numbers [N, I], got {type(features).__name__}") from None
    if values.ndim != 2 or not values.shape[1] or out_features < 1 or not 0.0 < density <= 1.0:
        raise UserError(
            f"csti needs features [N, I], out_features >= 1 and a density in (0, 1], got "
            f"{list(values.shape)}, {out_features} and {density}"
        )
    try:
        edges = csti(values, out_features, rho=density)
    except ValueError as error:
        raise UserError(f"csti of {name}: {error}") from None
    return LayerTopology(name, out_features, values.shape[1], edges)


def topology_config(
    kind: str,
    *,
    density: float,
    allocation: str = "uniform",
    block: int | None = None,
    **options: Any,
) -> TopologyConfig:
    """The config of a drawn topology from plain arguments.

    Args:
        allocation: how density is spread over layers: uniform, er or erk.
        block: side of the tiles to draw in place of single weights.
        options: of the kind, as in the config: `r` of brf, `beta` of bsw, `m` of nm, ...

    Raises:
        UserError: naming what is not known, and what is.
    """
    if kind not in TOPOLOGIES:
        raise UserError(f"kind={kind}: no graph can be drawn. Known: {', '.join(TOPOLOGIES)}")
    if allocation not in ("uniform", "er", "erk"):
        raise UserError(f"allocation={allocation} is unknown. Known: uniform, er, erk")
    field, cls = _OPTIONS.get(kind, ("", None))
    known = [each.name for each in dataclasses.fields(cls)] if cls else []
    for option in options:
        if option not in known:
            raise UserError(f"{option} is no option of {kind}. Known: {', '.join(known) or 'none'}")
    try:
        parts: dict[str, Any] = {field: cls(**options)} if cls else {}
        if block is not None:
            parts["block"] = BlockConfig(size=block)
        return TopologyConfig(kind=kind, density=density, allocation=allocation, **parts)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"topology of kind {kind}: {error}") from None
