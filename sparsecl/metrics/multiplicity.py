"""p-values corrected for the number of contrasts that were tested together.

With p_(1) <= ... <= p_(m) sorted:

    Holm:  adjusted p_(k) = max_{i <= k} min(1, (m - i + 1) p_(i))     family-wise error rate
    BH:    adjusted p_(k) = min_{i >= k} min(1, m p_(i) / i)           false discovery rate

Holm 1979, Scand. J. Statist. 6:65; Benjamini & Hochberg 1995, J. R. Statist. Soc. B 57:289. Holm is
valid however the contrasts depend on each other and serves the contrasts planned beforehand. BH
needs independence or positive dependence and serves exploration.

None and NaN mean "not tested": the value stays None and m does not count it. That is right for a
contrast that could not be tested whatever the data said (too few seeds); leaving out one because of
its data is selection, which no correction repairs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values in the order given; reject where <= alpha.

    Ties get equal values, the order of the input does not matter, and no value falls below its p.

    Raises:
        ValueError: for a p outside [0, 1].
    """
    p, tested = _tested(p_values)
    rank = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[rank] = np.maximum.accumulate(factors * p[rank])
    return _put_back(adjusted, tested)


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values in the order given; reject where <= the accepted false discovery rate.

    Never above Holm's. Ties get equal values.

    Raises:
        ValueError: for a p outside [0, 1].
    """
    p, tested = _tested(p_values)
    from scipy import stats  # on use: it takes a second

    adjusted = stats.false_discovery_control(p) if len(p) else p
    return _put_back(adjusted, tested)


def _tested(p_values: Sequence[float | None]) -> tuple[NDArray[np.float64], list[bool]]:
    """The p-values that exist, and where they stood."""
    every = np.array([np.nan if p is None else p for p in p_values], dtype=np.float64)
    tested = ~np.isnan(every)
    kept = every[tested]
    wrong = kept[(kept < 0) | (kept > 1)]
    if len(wrong):
        raise ValueError(f"a p-value lies in [0, 1], got {float(wrong[0])}")
    return kept, tested.tolist()


def _put_back(adjusted: NDArray[np.float64], tested: list[bool]) -> list[float | None]:
    values = iter(np.minimum(adjusted, 1.0).tolist())
    return [next(values) if was else None for was in tested]
