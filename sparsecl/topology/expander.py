"""Expander topologies: random graphs with regular degrees.

O = out_features, I = in_features, global; d_r, d_c = live weights of a row, of a column.
Sources: Prabhu et al. 2018 (Deep Expander Networks), https://arxiv.org/abs/1711.08757, for `xnet`;
random biregular graphs are close to Ramanujan with high probability (Friedman-type results).

biregular: every row has d_r and every column d_c live weights, with O * d_r = I * d_c. Whole
degrees round the density: by +4 % at 768 x 768 and 0.01, by up to 25 % before it is refused.
near_biregular: exactly round(rho * O * I) live weights, all degrees floor or ceil of their mean.
xnet: every unit of the smaller side picks the same number of distinct partners; the larger side is
left to chance. As published, so it is neither checked nor redrawn by its spectrum; its density is
rounded likewise. In a study near_biregular is the form that has as many weights as other graphs.

At density 0.05 an Erdos-Renyi graph has nearly the same second singular value: what these graphs
add is regular degrees. An expander mixes fast, which is the opposite of isolation.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsecl.topology.matching import match_degrees
from sparsecl.topology.sampling import choose_per_row, spread_degrees

ExpanderForm = Literal["biregular", "near_biregular", "xnet"]

NUM_DRAWS = 10  # graphs drawn before the best of them is taken
TOLERANCE = 0.02  # a second singular value this much above the Ramanujan bound is accepted
NUM_ITERATIONS = 15  # of the power method; see second_singular_value
# Largest relative distance of a density of whole degrees from the one asked for.
MAX_DEVIATION = 0.25


def expander(
    out_features: int,
    in_features: int,
    *,
    rho: float,
    rng: np.random.Generator,
    form: ExpanderForm = "biregular",
) -> NDArray[np.int64]:
    """Draw one expander.

    Args:
        rho: density in (0, 1]. biregular and xnet round it to the nearest density that exists.
        rng: the stream of this layer; it is advanced.
        form: see the top of the file.

    Returns:
        Sorted flat indices o * I + i of the live weights.

    Raises:
        ValueError: if no graph of whole degrees is near rho; the message begins with `density`.
    """
    if form == "xnet":
        return _xnet(out_features, in_features, rho, rng)
    best, lowest = np.empty(0, dtype=np.int64), math.inf
    for _ in range(NUM_DRAWS):
        edges = np.flatnonzero(_draw(out_features, in_features, rho, rng, form))
        row_degree, column_degree = edges.size / out_features, edges.size / in_features
        if min(row_degree, column_degree) < 2.0:
            return edges  # pairs and stars: the bound says nothing about them
        sigma = second_singular_value(out_features, in_features, edges, rng)
        if sigma < lowest:
            best, lowest = edges, sigma
        bound = math.sqrt(row_degree - 1.0) + math.sqrt(column_degree - 1.0)
        if sigma <= (1.0 + TOLERANCE) * bound:
            break
    return best


def second_singular_value(
    out_features: int, in_features: int, edges: NDArray[np.int64], rng: np.random.Generator
) -> float:
    """A lower bound of the second singular value of the 0/1 matrix, by a few power iterations.

    It finds an outlier above the bulk of the spectrum, which is what a bad draw has; the edge of
    the bulk itself it underestimates by some per cent. The first pair of singular vectors is
    projected away: constant for a biregular graph, found by iteration otherwise.
    """
    from scipy import sparse

    rows, columns = np.divmod(edges, in_features)
    row_ends = np.cumsum(np.bincount(rows, minlength=out_features))
    matrix = sparse.csr_array(
        (np.ones(edges.size), columns, np.concatenate([[0], row_ends])),
        shape=(out_features, in_features),
    )
    transposed = matrix.T
    first = np.ones(in_features)
    for _ in range(5):  # the gap below the first value is wide: a few steps suffice
        first = transposed @ (matrix @ first)
        first /= np.linalg.norm(first)
    vector, value = rng.standard_normal(in_features), 0.0
    for _ in range(NUM_ITERATIONS):
        vector -= (first @ vector) * first
        norm = float(np.linalg.norm(vector))
        if norm < 1e-9:  # rank 1: nothing is left beside the first pair
            return 0.0
        image = matrix @ (vector / norm)
        value = float(np.linalg.norm(image))
        vector = transposed @ image
    return value


def _draw(
    out_features: int, in_features: int, rho: float, rng: np.random.Generator, form: ExpanderForm
) -> NDArray[np.bool_]:
    if form == "near_biregular":
        total = round(rho * out_features * in_features)
        rows = spread_degrees(out_features, total, rng)
        return match_degrees(rows, spread_degrees(in_features, total, rng), rng)
    row_degree, column_degree = biregular_degrees(out_features, in_features, rho)
    return match_degrees(
        np.full(out_features, row_degree), np.full(in_features, column_degree), rng
    )


def biregular_degrees(out_features: int, in_features: int, rho: float) -> tuple[int, int]:
    """Row and column degree of the biregular graph whose density is nearest to rho.

    O * d_r = I * d_c allows the densities t / gcd(O, I) for t = 1, 2, ... and no other.
    """
    divisor = math.gcd(out_features, in_features)
    step = min(divisor, max(1, round(rho * divisor)))
    if abs(step / divisor - rho) > MAX_DEVIATION * rho:
        raise ValueError(
            f"density {rho:g}: the nearest biregular graph has density {step / divisor:g}. "
            "Use that density, or expander.form: near_biregular"
        )
    return step * in_features // divisor, step * out_features // divisor


def _xnet(
    out_features: int, in_features: int, rho: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    small, large = min(out_features, in_features), max(out_features, in_features)
    degree = round(rho * large)
    if degree == 0:
        raise ValueError(
            f"density {rho:g}: a unit of the smaller side would pick none of {large} partners. "
            f"Use {1 / large:g} or more"
        )
    if abs(degree / large - rho) > MAX_DEVIATION * rho:
        raise ValueError(
            f"density {rho:g}: the nearest X-Net has density {degree / large:g}. "
            "Use that density, or expander.form: near_biregular"
        )
    mask = choose_per_row(large, np.full(small, degree), rng)
    # Output rows choose in a square matrix.
    return np.flatnonzero(mask if out_features <= in_features else mask.T)
