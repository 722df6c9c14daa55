"""Bipartite receptive fields: each unit of the smaller side sees mostly units near its centre.

O = out_features, I = in_features, global; p, q = the smaller and the larger of them; N = live.
Source: Zhang et al. 2025, https://arxiv.org/abs/2501.19107, after its public code
(biomedical-cybernetics/Cannistraci-Hebb-Training-Soft-Rule-). The formula of the paper's text may
differ; this one is the code's.

The larger side is a ring. Unit i of the smaller side has its centre at c_i = i * max(1, q // p)
mod q, and a link to a unit at ring distance d has the weight (1 + d)^(-(1 - r) / r): r = 0 takes
the nearest units, r = 1 takes any. If p does not divide q, the units behind the last centre are
sparser at small r, as in the code.

Differs from the code:
- Orientation is a rule: centres sit on the side with fewer units, on the output rows of a square
  matrix. There it follows from a comparison of sizes that nobody states.
- At r = 0 the two units at equal distance are taken in the order 0, +1, -1, +2, -2, ... There the
  order is that of a partial sort.
- The number of live weights is exactly round(rho * O * I) for both kinds of degrees.
- A generator of its own, so that no other draw of the process moves the graph.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsecl.topology.sampling import choose_per_row, spread_degrees

BrfDegrees = Literal["fixed", "uniform"]


def brf(
    out_features: int,
    in_features: int,
    *,
    rho: float,
    rng: np.random.Generator,
    r: float = 0.3,
    degrees: BrfDegrees = "fixed",
) -> NDArray[np.int64]:
    """Draw one graph of receptive fields.

    Args:
        rho: density in (0, 1].
        rng: the stream of this layer; it is advanced.
        r: spatial randomness in [0, 1].
        degrees: links of the units of the smaller side. fixed: floor or ceil of rho * q; uniform:
            one each, and the rest dropped on units at random.

    Returns:
        Sorted flat indices o * I + i, exactly round(rho * O * I) of them.
    """
    rows, columns = _brf_links(out_features, in_features, rho, rng, r, degrees)
    return _sorted_edges(out_features, in_features, rows, columns)


def shared_index(
    out_features: int,
    in_features: int,
    *,
    rho: float,
    rng: np.random.Generator,
    r: float = 0.3,
    degrees: BrfDegrees = "fixed",
) -> NDArray[np.int64]:
    """BRF under one random permutation of the units of each side of this layer.

    The control for `brf`: as a graph the layer is the same, but a unit's neighbours in one layer
    are strangers in the next, so no columns form along the depth. The graph is drawn first: with
    an equal `rng`, it is the one of `brf`.

    Args and returns as in `brf`.
    """
    rows, columns = _brf_links(out_features, in_features, rho, rng, r, degrees)
    rows, columns = rng.permutation(out_features)[rows], rng.permutation(in_features)[columns]
    return _sorted_edges(out_features, in_features, rows, columns)


def ring_log_weights(size: int, r: float) -> NDArray[np.float64]:
    """Logarithm of the weight at offsets 0 .. size - 1 from the centre, clockwise; r in (0, 1]."""
    offsets = np.arange(size)
    return -(1.0 - r) / r * np.log1p(np.minimum(offsets, size - offsets))


def _brf_links(
    out_features: int,
    in_features: int,
    rho: float,
    rng: np.random.Generator,
    r: float,
    degrees: BrfDegrees,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Output and input unit of every link, [N] each."""
    num_centres, ring = min(out_features, in_features), max(out_features, in_features)
    total = round(rho * out_features * in_features)
    if degrees == "fixed":
        counts = spread_degrees(num_centres, total, rng)
    else:
        counts = _dropped_degrees(num_centres, ring, total, rng)
    units, offsets = np.divmod(np.flatnonzero(_choose_offsets(ring, counts, r, rng)), ring)
    partners = (units * max(1, ring // num_centres) + offsets) % ring
    # A tall matrix has fewer inputs than outputs: its centres are input units.
    return (units, partners) if out_features <= in_features else (partners, units)


def _sorted_edges(
    out_features: int, in_features: int, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.int64]:
    live = np.zeros(out_features * in_features, dtype=bool)
    live[rows * in_features + columns] = True
    return np.flatnonzero(live)


def _choose_offsets(
    ring: int, counts: NDArray[np.int64], r: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Links by their clockwise offset from the centre of the unit, [p, q]."""
    if r == 0.0:
        # Rank of each offset in the order 0, +1, -1, +2, -2, ...
        offsets = np.arange(ring)
        backward = 2 * offsets > ring
        ranks = np.where(backward, 2 * (ring - offsets), np.maximum(2 * offsets - 1, 0))
        return ranks < counts[:, None]
    return choose_per_row(ring, counts, rng, None if r == 1.0 else ring_log_weights(ring, r))


def _dropped_degrees(
    num_units: int, limit: int, total: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """One link for every unit, the rest on units at random, `limit` at most; sum = total.

    With fewer links than units, units drawn at random get one and the others none.
    """
    if total <= num_units:
        return spread_degrees(num_units, total, rng)
    degrees = np.ones(num_units, dtype=np.int64)
    while missing := total - int(degrees.sum()):
        # Links beyond the size of the ring are dropped again, on units that still have room.
        open_units = np.flatnonzero(degrees < limit)
        degrees += np.bincount(rng.choice(open_units, size=missing), minlength=num_units)
        np.minimum(degrees, limit, out=degrees)
    return degrees
