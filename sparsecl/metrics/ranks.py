"""Four ranks of a representation, under four names, because papers call different things "rank".

All take the singular values s_1 >= s_2 >= ... >= 0 of an activation matrix H [S, n] (S tokens, n
units), and none centres H, as in the code of Dohare et al. 2024:

    erank          exp(-sum_k p_k log p_k), p_k = s_k / sum s        Roy & Vetterli 2007
    srank99        least k with sum_{j <= k} s_j >= 0.99 sum s       Kumar et al. 2021; what Dohare
                   et al. call the stable rank
    arank99        the same on s_j^2                                 arXiv 1909.12255
    stable_rank_F  sum s^2 / s_1^2 = |H|_F^2 / |H|_2^2               numerical analysis

All are 1 for a matrix of rank one and, but for the two with 99, n for the identity; they do not
change if H is scaled or its rows or columns are permuted. A matrix of zeros has rank 0 in all.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

DELTA = 0.01  # Kumar et al. 2021, and the code of Dohare et al. 2024
# Sums that should meet a bound exactly miss it by rounding: 0.99 of 100 equal values is 99 of them.
SLACK = 1e-12


def erank(values: ArrayLike) -> float:
    """Effective rank of singular values [k] in any order: exp of their entropy, 1 to k."""
    shares = _shares(values)
    positive = shares[shares > 0]
    return float(np.exp(-(positive * np.log(positive)).sum())) if positive.size else 0.0


def srank99(values: ArrayLike) -> float:
    """Number of leading singular values that hold 99% of their sum."""
    return _num_leading(_shares(values))


def arank99(values: ArrayLike) -> float:
    """Number of leading singular values that hold 99% of the sum of their squares."""
    return _num_leading(_shares(np.square(_scaled(values))))


def stable_rank_F(values: ArrayLike) -> float:
    """Squared Frobenius norm over squared spectral norm."""
    return float(np.square(_scaled(values)).sum())


RANKS: dict[str, Callable[[ArrayLike], float]] = {
    "erank": erank,
    "srank99": srank99,
    "arank99": arank99,
    "stable_rank_F": stable_rank_F,
}


def rank_figures(gram: FloatArray) -> dict[str, float]:
    """All ranks of H by name, from its Gram matrix H^T H [n, n] or H H^T [S, S].

    Raises:
        ValueError: if the matrix is not square.
    """
    values = singular_values(gram)
    return {name: rank(values) for name, rank in RANKS.items()}


def singular_values(gram: FloatArray) -> FloatArray:
    """Singular values of H in descending order, from a Gram matrix in fp64.

    Squaring costs half of the digits: what lies below about 1e-6 of the largest value is rounding
    and is returned as zero. Activations in fp32 know nothing below that either.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"a Gram matrix is square, got {gram.shape}")
    squares = np.linalg.eigvalsh(gram)[::-1]
    floor = len(gram) * np.finfo(np.float64).eps * squares[0]
    return np.sqrt(np.where(squares > floor, squares, 0.0))


def _shares(values: ArrayLike) -> FloatArray:
    """Nonnegative values divided by their sum, descending; zeros if all are zero."""
    found = np.sort(_scaled(values))[::-1]
    total = found.sum()
    return found / total if total > 0 else found


def _scaled(values: ArrayLike) -> FloatArray:
    """Values divided by the largest, so that squares neither overflow nor underflow."""
    found = np.asarray(values, dtype=np.float64)
    largest = found.max()
    return found / largest if largest > 0 else found


def _num_leading(shares: FloatArray) -> float:
    if not shares.any():
        return 0.0
    return float((np.cumsum(shares) < (1.0 - DELTA) * (1.0 - SLACK)).sum() + 1)
