"""Which density is best, and whether the best one moves with the size of the model.

rho = density, live share of the weights, in (0, 1]; S = seeds, D = densities, K = sizes.

The optimum is the density of the grid with the best mean over seeds: no curve is fitted, so it can
only be one of the densities that were run. Its interval spans the densities that the seeds cannot
tell from the best: those whose paired difference from it has a t interval, at 1 - alpha / (D - 1),
that is not wholly on the worse side. The true optimum is left out with probability alpha / 2 at
most. The shares say how often each density won when whole seeds are resampled. An optimum at the
edge of the grid may lie beyond it.

    log10 rho* = a + b log10 N       least squares over the sizes, N = parameters of the dense model

b > 0: larger models want more density. Its interval spans the slopes of all optima within the
intervals of the sizes, each at 1 - alpha / K. With three sizes this describes; it does not test.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from sparsecl.metrics.bootstrap import (
    DRAWS,
    MIN_SEEDS,
    FloatArray,
    IndexArray,
    Interval,
    bootstrap,
    seed_counts,
    t_interval,
)


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best density of one size; interval and shares are None below MIN_SEEDS."""

    density: float
    value: float
    """Mean over seeds there."""
    interval: Interval | None
    """Of the density."""
    densities: tuple[float, ...]
    """Those with values, rising."""
    means: tuple[float, ...]
    """Of each."""
    shares: tuple[float, ...] | None
    """Share of the resamples in which each was best."""
    num_seeds: int
    """Seeds with a value at every density; others are left out."""

    @property
    def at_edge(self) -> bool:
        """The best is the smallest or the largest density that was run."""
        return self.density in (self.densities[0], self.densities[-1])


@dataclass(frozen=True, kw_only=True)
class OptimumSlope:
    """How the optimum moves with size."""

    slope: float
    """b: change of log10 rho* for ten times the parameters."""
    interval: Interval | None
    """None below MIN_SEEDS."""
    num_seeds: int
    """Seeds with a value at every density of every size."""


def optimal_density(
    densities: Sequence[float],
    values: ArrayLike,
    *,
    better: Literal["lower", "higher"] = "lower",
    level: float = 0.95,
    draws: int = DRAWS,
    rng: np.random.Generator,
) -> Optimum:
    """The density with the best mean over seeds; of equal ones the smallest.

    Args:
        densities: [D], distinct, each in (0, 1], in any order.
        values: [S, D]; None or not finite = no value. A density without any is left out.

    Raises:
        ValueError: fewer than 2 densities with a value, or no seed with a value at each of them.
    """
    rho, table = _table(densities, values)
    best = float(_best(rho, table, np.ones((1, len(table))), better)[0])
    means = table.mean(axis=0)
    return Optimum(
        density=best,
        value=float(means[rho == best][0]),
        interval=_interval(rho, table, best, better, level),
        densities=tuple(rho.tolist()),
        means=tuple(means.tolist()),
        shares=_shares(rho, table, better, draws, rng),
        num_seeds=len(table),
    )


def optimum_slope(
    parameters: Sequence[int],
    grids: Sequence[tuple[Sequence[float], ArrayLike]],
    *,
    better: Literal["lower", "higher"] = "lower",
    level: float = 0.95,
) -> OptimumSlope:
    """Fit the optima of several sizes.

    Args:
        parameters: [K], of the dense model of each size, at least two different ones.
        grids: for each size its densities [D] and values [S, D]; row s is the same seed in all.

    Raises:
        ValueError: one size only, or as in `optimal_density`.
    """
    x = np.log10(np.asarray(parameters, dtype=np.float64))
    if len(set(parameters)) < 2:
        raise ValueError("a slope needs two or more sizes")
    whole = [_known(*grid) for grid in grids]
    complete = np.all([np.isfinite(table).all(axis=1) for _, table in whole], axis=0)
    if not complete.any():
        raise ValueError("no seed has a value at every density of every size")
    once = np.ones((1, int(complete.sum())))
    weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    slope, low, high = 0.0, 0.0, 0.0
    interval = None
    for weight, (rho, table) in zip(weights, whole, strict=True):
        rows = table[complete]
        best = float(_best(rho, rows, once, better)[0])
        slope += float(weight * np.log10(best))
        interval = _interval(rho, rows, best, better, 1 - (1 - level) / len(whole))
        if interval is not None:  # for all sizes or for none: the seeds are the same
            ends = sorted(float(weight * np.log10(end)) for end in (interval.low, interval.high))
            low, high = low + ends[0], high + ends[1]
    return OptimumSlope(
        slope=slope,
        interval=interval and Interval(low=low, high=high, level=level, method="t"),
        num_seeds=int(complete.sum()),
    )


def _interval(
    rho: FloatArray,
    table: FloatArray,
    best: float,
    better: Literal["lower", "higher"],
    level: float,
) -> Interval | None:
    """The span of the densities that cannot be told from the best; None below MIN_SEEDS."""
    if len(table) < MIN_SEEDS:
        return None
    sign = 1 if better == "lower" else -1
    worse = sign * (table - table[:, rho == best])
    each = 1 - (1 - level) / (len(rho) - 1)
    kept = [
        one
        for one, gap in zip(rho.tolist(), worse.T, strict=True)
        if one == best or t_interval(gap, each).low <= 0
    ]
    return Interval(low=min(kept), high=max(kept), level=level, method="t")


def _shares(
    rho: FloatArray,
    table: FloatArray,
    better: Literal["lower", "higher"],
    draws: int,
    rng: np.random.Generator,
) -> tuple[float, ...] | None:
    """Share of the resamples in which each density is the best; None below MIN_SEEDS."""
    num_seeds = len(table)
    if num_seeds < MIN_SEEDS:
        return None

    def statistic(indices: IndexArray) -> FloatArray:
        return _best(rho, table, seed_counts(indices, num_seeds), better)

    drawn = bootstrap(statistic, num_seeds, draws=draws, rng=rng)
    return tuple(float(np.mean(drawn == one)) for one in rho)


def _best(
    rho: FloatArray, table: FloatArray, counts: FloatArray, better: Literal["lower", "higher"]
) -> FloatArray:
    """Best density [b] with each seed counted `counts` [b, S] times."""
    sums = counts @ table
    return rho[np.argmin(sums if better == "lower" else -sums, axis=1)]


def _known(densities: Sequence[float], values: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Densities with any value, rising, and their values [S, D]."""
    rho = np.asarray(densities, dtype=np.float64)
    table = np.asarray(values, dtype=np.float64)  # None becomes NaN
    if table.ndim != 2 or table.shape[1] != len(rho) or len(np.unique(rho)) < len(rho):
        raise ValueError(
            f"expected values [seeds, {len(rho)} distinct densities], got {table.shape}"
        )
    wrong = rho[~((rho > 0) & (rho <= 1))]
    if len(wrong):
        raise ValueError(f"density must be in (0, 1], got {float(wrong[0])}")
    order = np.argsort(rho)
    order = order[np.isfinite(table[:, order]).any(axis=0)]
    if len(order) < 2:
        raise ValueError(f"an optimum needs values at 2 or more densities, got {len(order)}")
    return rho[order], table[:, order]


def _table(densities: Sequence[float], values: ArrayLike) -> tuple[FloatArray, FloatArray]:
    rho, table = _known(densities, values)
    complete = np.isfinite(table).all(axis=1)
    if not complete.any():
        raise ValueError("no seed has a value at every density")
    return rho, table[complete]
