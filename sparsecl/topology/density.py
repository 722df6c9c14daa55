"""How a global density is spread over the masked matrices.

uniform: the same density everywhere; what a clean comparison wants. erk: Erdos-Renyi-kernel of
Evci et al. 2020 (RigL), https://arxiv.org/abs/1911.11134, in the form of their public code
(google-research/rigl, get_sparsities_erdos_renyi); for plain matrices it is the ER rule of SET.
"""

import math
from collections.abc import Sequence

from sparsecl.topology.layer import LayerShape


def uniform(shapes: Sequence[LayerShape], rho: float) -> dict[str, float]:
    """Density rho for every layer."""
    return {shape.name: rho for shape in shapes}


def erk(shapes: Sequence[LayerShape], rho: float) -> dict[str, float]:
    """Density proportional to (O + I) / (O * I), at most 1, with the budget of uniform rho.

    Law: the sum of density * cells over layers equals rho * cells, within one weight per layer.

    Returns:
        Density in (0, 1] by layer name.
    """
    raw = {s.name: (s.out_features + s.in_features) / s.num_cells for s in shapes}
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


ALLOCATIONS = {"uniform": uniform, "erk": erk}
