"""Bipartite small world: windows of neighbours, of which a share is moved to random places.

O = out_features, I = in_features, global; p, q = the smaller and the larger of them.
Source: the Watts-Strogatz initialisation ("WS") of the public code of Zhang et al.
(biomedical-cybernetics/Cannistraci-Hebb-training and its soft-rule successor).

Each unit j of the larger side is linked to K_j consecutive units of the smaller side, which is a
ring, beginning at floor(j * p / q - K_j / 2). Then each link is deleted with probability beta, and
as many links are added on empty cells, drawn uniformly. beta = 0 is a band, beta = 1 is er_fixed.

Differs from the code: the number of links is exact (one version there adds one too many), the
windows of a square matrix belong to the output rows by rule, and a negative start is rounded down;
the code's int() rounds towards zero, so there the first few windows, those that reach around the
ring, begin one place later where K_j / 2 - j p / q is not whole.
"""

import numpy as np
from numpy.typing import NDArray

from sparsecl.topology.sampling import add_cells, spread_degrees


def bsw(
    out_features: int,
    in_features: int,
    *,
    rho: float,
    rng: np.random.Generator,
    beta: float = 0.25,
) -> NDArray[np.int64]:
    """Draw one small-world graph.

    Args:
        rho: density in (0, 1].
        rng: the stream of this layer; it is advanced.
        beta: probability of a link to be moved, in [0, 1].

    Returns:
        Sorted flat indices o * I + i, exactly round(rho * O * I) of them.
    """
    small, large = min(out_features, in_features), max(out_features, in_features)
    degrees = spread_degrees(large, round(rho * out_features * in_features), rng)
    units, partners = _windows(small, degrees)
    rows, columns = (units, partners) if out_features >= in_features else (partners, units)
    live = np.zeros(out_features * in_features, dtype=bool)
    live[rows * in_features + columns] = True
    if beta > 0.0:
        _move_links(live, beta, rng)
    return np.flatnonzero(live)


def _windows(ring: int, degrees: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Links of each unit j of the larger side to degrees[j] units of the ring around j * p / q.

    Returns:
        Unit of the larger side and of the smaller side of every link, [N] each.
    """
    num_units = degrees.size
    units = np.repeat(np.arange(num_units), degrees)
    places = np.arange(units.size) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    # floor(j * p / q - K / 2), in integers.
    starts = (2 * np.arange(num_units) * ring - degrees * num_units) // (2 * num_units)
    return units, (starts[units] + places) % ring


def _move_links(live: NDArray[np.bool_], beta: float, rng: np.random.Generator) -> None:
    """Delete links with probability beta and add as many on cells that are then empty, in place."""
    links = np.flatnonzero(live)
    deleted = links[rng.random(links.size) < beta]
    live[deleted] = False
    add_cells(live, deleted.size, rng)
