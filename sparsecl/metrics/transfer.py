"""Backward and forward transfer, and average performance.

Lopez-Paz & Ranzato 2017 (GEM), https://arxiv.org/abs/1706.08840. Conventions of `forgetting`:
a loss matrix L [P + 1, D] and the `order` of the phases. Their score is a = -L, hence:

    BWT = 1/(T-1) sum_{i not last}  L[l(i),i] - L[P,i]       higher is better, negative = forgetting
    FWT = 1/(T-1) sum_{i not first} L[0,i] - L[b(i),i]       higher is better
    ACC = 1/T sum_i L[P,i]    in nats of loss, so here lower is better

l(i) = row after the last phase of domain i, b(i) = row before its first phase.
Differs: the released code divides by T and counts the undefined terms as zero, which makes BWT and
FWT smaller by (T-1)/T. We follow the formulas of the paper.
"""

from collections.abc import Sequence

from numpy.typing import ArrayLike

from sparsecl.metrics.forgetting import check, f_last, first_rows, last_rows, mean


def bwt(loss: ArrayLike, order: Sequence[int]) -> float | None:
    """Backward transfer in nats per token: what later phases did to earlier domains."""
    forgotten = f_last(loss, order)
    return None if forgotten is None else 0.0 - forgotten


def fwt(loss: ArrayLike, order: Sequence[int]) -> float | None:
    """Forward transfer in nats per token: head start over the untrained model.

    None if no domain was first trained after another phase, or row 0 is missing.
    """
    matrix = check(loss, order)
    return mean([matrix[0, i] - matrix[row, i] for i, row in first_rows(order).items() if row > 0])


def acc(scores: ArrayLike, order: Sequence[int]) -> float | None:
    """Mean of the last row over the trained domains, in the units and direction of `scores`."""
    matrix = check(scores, order)
    return mean([matrix[-1, i] for i in last_rows(order)])


def average_seen(scores: ArrayLike, order: Sequence[int]) -> list[float | None]:
    """A_j over the domains trained up to row j, for j = 0..P; row 0 has seen none: None.

    The set of domains grows with j. To follow one fixed set over time use `average_all`.
    """
    matrix = check(scores, order)
    return [mean([matrix[j, i] for i in last_rows(order[:j])]) for j in range(len(order) + 1)]


def average_all(scores: ArrayLike, order: Sequence[int]) -> list[float | None]:
    """Mean of each row over all columns, trained or not: comparable from row to row."""
    matrix = check(scores, order)
    return [mean(list(row)) for row in matrix]
