"""Erdos-Renyi topologies: live weights drawn uniformly over the matrix.

O = out_features, I = in_features, both global (before any tensor-parallel split); N = live weights.
Source: Mocanu et al. 2018 (SET), https://arxiv.org/abs/1707.04780.
The word ER has two meanings in the literature, so the two graphs have two names: `er_fixed` has an
exact number of live weights (two seeds cost the same FLOPs and compare fairly), `er_bernoulli`
draws each weight on its own (the classical G(n, p); the count varies between seeds).
"""

import numpy as np
from numpy.typing import NDArray

from sparsecl.topology.sampling import choose_cells

# Cells drawn at once by er_bernoulli: 8 MB of doubles. The bits do not depend on it.
CHUNK_CELLS = 1 << 20


def er_fixed(
    out_features: int, in_features: int, *, rho: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a uniformly random set of exactly round(rho * O * I) live weights.

    Args:
        rho: density in (0, 1].
        rng: the stream of this layer; it is advanced.

    Returns:
        Sorted flat indices o * I + i of the live weights, [N]. May be empty for a tiny matrix.

    Raises:
        ValueError: if rho is outside (0, 1].
    """
    _check_rho(rho)
    num_cells = out_features * in_features
    live = choose_cells(num_cells, round(rho * num_cells), rng)
    return np.flatnonzero(live).astype(np.int64, copy=False)


def er_bernoulli(
    out_features: int, in_features: int, *, rho: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Let every weight live with probability rho, independently.

    Args and returns as in `er_fixed`; N is binomial with mean rho * O * I.
    """
    _check_rho(rho)
    num_cells = out_features * in_features
    live = np.empty(num_cells, dtype=bool)
    for start in range(0, num_cells, CHUNK_CELLS):
        stop = min(start + CHUNK_CELLS, num_cells)
        np.less(rng.random(stop - start), rho, out=live[start:stop])
    return np.flatnonzero(live).astype(np.int64, copy=False)


def _check_rho(rho: float) -> None:
    if not 0.0 < rho <= 1.0:
        raise ValueError(f"rho must be in (0, 1], got {rho} (rho is density, not sparsity)")
