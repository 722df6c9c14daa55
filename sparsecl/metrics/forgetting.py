"""Average forgetting under three names, and forgetting relative to what was learned.

All take a loss matrix L [P + 1, D] in nats per token (row 0 = before training, row p + 1 = after
phase p) and `order`, where order[p] is the column trained in phase p. For scores where higher is
better, pass the negated matrix. Positive = forgotten; lower is better.

Write T for the number of distinct domains trained, l(i) for the row after training domain i, and
P for the last row. With one phase per domain this is the textbook setting, and then:

    F_last = 1/(T-1) sum_{i not last} L[P,i] - L[l(i),i]                           = -BWT
    F_std  = 1/(T-1) sum_{i not last} L[P,i] - min_{l(i) <= j < P} L[j,i]
    F_seed = 1/T     sum_i            L[P,i] - min_{1 <= j <= P} L[j,i]            >= 0
    NF_i   = (L[P,i] - L[l(i),i]) / (L[b(i),i] - L[l(i),i])

F_std: Chaudhry et al. 2018 (RWalk), https://arxiv.org/abs/1801.10112; NF is ours.
Differs: the papers train each domain once. If a stream comes back to a domain, "after training i"
means after its LAST phase (the model was retaught, so forgetting starts anew), while b(i), the row
before training i, is the one before its FIRST phase: all that was ever learned about i counts.
Prefer F_last in tests of a hypothesis: a minimum over noisy evaluations is biased, and the bias
grows with the length of the stream.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_IMPROVEMENT = 0.01
"""Nats per token. Below it a domain was hardly learned, and NF would divide noise by noise."""


def last_rows(order: Sequence[int]) -> dict[int, int]:
    """Row right after the last phase of each trained domain: column -> row."""
    return {index: phase + 1 for phase, index in enumerate(order) if index >= 0}


def first_rows(order: Sequence[int]) -> dict[int, int]:
    """Row right before the first phase of each trained domain: column -> row."""
    rows: dict[int, int] = {}
    for phase, index in enumerate(order):
        if index >= 0:
            rows.setdefault(index, phase)
    return rows


def exposed_rows(order: Sequence[int]) -> dict[int, int]:
    """`last_rows` without the domain trained in the final phase, which nothing followed."""
    return {index: row for index, row in last_rows(order).items() if row < len(order)}


def f_last(loss: ArrayLike, order: Sequence[int]) -> float | None:
    """Mean rise of the loss since each domain's own training; can be negative.

    None if no trained domain was followed by another phase. Equals -BWT exactly.
    """
    matrix = check(loss, order)
    return mean([matrix[-1, i] - matrix[row, i] for i, row in exposed_rows(order).items()])


def f_std(loss: ArrayLike, order: Sequence[int]) -> float | None:
    """Mean rise over the best row from the domain's training up to the last but one row.

    Never below F_last. Negative if the final phase improved the earlier domains.
    """
    matrix = check(loss, order)
    return mean([matrix[-1, i] - matrix[row:-1, i].min() for i, row in exposed_rows(order).items()])


def f_seed(loss: ArrayLike, order: Sequence[int]) -> float | None:
    """Mean rise over the best row after any phase, over all trained domains; never negative.

    Counts the domain trained last (usually 0), so it is about (T-1)/T of the others; and a domain
    can "forget" a score that it had before it was ever trained.
    """
    matrix = check(loss, order)
    return mean([matrix[-1, i] - matrix[1:, i].min() for i in last_rows(order)])


def per_domain(loss: ArrayLike, order: Sequence[int]) -> list[float | None]:
    """The terms of F_last for each column: 0 for the domain trained last, None if never trained."""
    matrix = check(loss, order)
    rows = last_rows(order)
    return [
        finite(matrix[-1, i] - matrix[rows[i], i]) if i in rows else None
        for i in range(matrix.shape[1])
    ]


def normalised(loss: ArrayLike, order: Sequence[int]) -> list[float | None]:
    """NF of each column: the share of its learned improvement that was lost again.

    0 = all kept, 1 = back to where it started, negative = improved later. None if the domain was
    never trained, if the row before its training is missing, or if the improvement is below
    `MIN_IMPROVEMENT`.
    """
    matrix = check(loss, order)
    last, first = last_rows(order), first_rows(order)
    shares: list[float | None] = [None] * matrix.shape[1]
    for i, row in last.items():
        improvement = matrix[first[i], i] - matrix[row, i]
        if improvement >= MIN_IMPROVEMENT:  # False for NaN as well
            shares[i] = finite((matrix[-1, i] - matrix[row, i]) / improvement)
    return shares


def counted_shares(loss: ArrayLike, order: Sequence[int]) -> dict[int, float]:
    """NF by column, of the domains that count: followed by another phase, and with a value.

    A run that learned little has few of them, so what is averaged over its own differs from what is
    averaged over another's: compare runs over the domains that count in all of them.
    """
    shares = normalised(loss, order)
    return {i: share for i in exposed_rows(order) if (share := shares[i]) is not None}


def mean_normalised(loss: ArrayLike, order: Sequence[int]) -> float | None:
    """Mean of NF over the domains that count."""
    return mean(list(counted_shares(loss, order).values()))


def check(loss: ArrayLike, order: Sequence[int]) -> NDArray[np.float64]:
    """The matrix as float64.

    Raises:
        ValueError: if it is not [len(order) + 1, D] or `order` names a column beyond D.
    """
    matrix = np.asarray(loss, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != len(order) + 1:
        raise ValueError(
            f"a loss matrix of {len(order)} phases has one row more, got {matrix.shape}"
        )
    if order and max(order) >= matrix.shape[1]:
        raise ValueError(f"order names column {max(order)} of {matrix.shape[1]}")
    return matrix


def mean(terms: Sequence[float]) -> float | None:
    """Arithmetic mean; None if there is nothing to average or a term is not finite."""
    return finite(float(np.mean(terms))) if len(terms) else None


def finite(value: float) -> float | None:
    """A plain float without -0.0; None for NaN and infinity."""
    return float(value) + 0.0 if np.isfinite(value) else None
