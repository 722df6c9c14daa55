"""How a global density is spread over the masked matrices.

uniform: the same density everywhere; what a clean comparison wants. er: the rule of SET (Mocanu et
al. 2018), density proportional to (O + I) / (O * I). erk: Erdos-Renyi-kernel of Evci et al. 2020
(RigL), https://arxiv.org/abs/1911.11134, in the form of their public code (google-research/rigl,
get_sparsities_erdos_renyi): the same for plain matrices, but for an optional power.
"""

import functools
import math
import re
from collections.abc import Sequence

from sparsecl.errors import UserError
from sparsecl.topology.config import OverrideConfig, TopologyConfig
from sparsecl.topology.layer import LayerShape


def allocate(config: TopologyConfig, shapes: Sequence[LayerShape]) -> dict[str, float]:
    """Density of every layer: those of the overrides, and the rule of the config for the others.

    The overridden layers are outside the budget: er and erk spend density * cells of the others.

    Returns:
        Density in (0, 1] by layer name.

    Raises:
        UserError: an override matches no layer.
    """
    overridden: dict[str, float] = {}
    for number, override in enumerate(config.overrides):
        matched = [shape.name for shape in shapes if _matches(override, shape)]
        if not matched:
            raise UserError(_no_match(number, override, shapes))
        overridden |= dict.fromkeys(matched, override.density)
    rule = {"uniform": uniform, "er": erk, "erk": functools.partial(erk, power=config.erk_power)}
    rest = [shape for shape in shapes if shape.name not in overridden]
    return rule[config.allocation](rest, config.rho) | overridden


def uniform(shapes: Sequence[LayerShape], rho: float) -> dict[str, float]:
    """Density rho for every layer."""
    return {shape.name: rho for shape in shapes}


def erk(shapes: Sequence[LayerShape], rho: float, power: float = 1.0) -> dict[str, float]:
    """Density proportional to ((O + I) / (O * I))^power, at most 1, with the budget of uniform rho.

    Law: the sum of density * cells over layers equals rho * cells, within one weight per layer.

    Returns:
        Density in (0, 1] by layer name.
    """
    raw = {s.name: ((s.out_features + s.in_features) / s.num_cells) ** power for s in shapes}
    full: set[str] = set()  # layers whose share would exceed 1
    while len(full) < len(shapes):
        scale = _scale(shapes, raw, full, rho)
        largest = max(raw[s.name] for s in shapes if s.name not in full)
        if scale * largest <= 1.0:
            return {s.name: 1.0 if s.name in full else scale * raw[s.name] for s in shapes}
        full |= {s.name for s in shapes if raw[s.name] == largest}
    return {s.name: 1.0 for s in shapes}


def _scale(
    shapes: Sequence[LayerShape], raw: dict[str, float], full: set[str], rho: float
) -> float:
    """The factor eps that spends what the full layers leave of the budget."""
    budget, weight = 0.0, 0.0
    for shape in shapes:
        # Whole dead weights, rounded down, as in the reference code.
        num_dead = math.floor((1.0 - rho) * shape.num_cells)
        if shape.name in full:
            budget -= num_dead
        else:
            budget += shape.num_cells - num_dead
            weight += raw[shape.name] * shape.num_cells
    return budget / weight


def _block_index(shape: LayerShape) -> int | None:
    """The i of layers.<i>.attention.q, in any column; None for a matrix outside the blocks."""
    match = re.match(r"(?:columns\.\d+\.)?layers\.(\d+)\.", shape.name)
    return int(match[1]) if match else None


def _matches(override: OverrideConfig, shape: LayerShape) -> bool:
    kind_fits = not override.kinds or shape.kind in override.kinds
    return kind_fits and (not override.layers or _block_index(shape) in override.layers)


def _no_match(number: int, override: OverrideConfig, shapes: Sequence[LayerShape]) -> str:
    blocks = [index for shape in shapes if (index := _block_index(shape)) is not None]
    last = max(blocks, default=-1)
    return (
        f"topology.overrides.{number}: no layer has kinds {list(override.kinds) or 'any'} and "
        f"layers {list(override.layers) or 'any'}. The model has blocks 0 to {last}"
    )
