"""How forgetting depends on density: a fitted line with its uncertainty, and a rank correlation.

    F = a + b log10(rho)       least squares over all points (seed, density)

rho = density, live share of the weights, in (0, 1]. a is the forgetting at rho = 1, b the change
of forgetting for ten times the density: b > 0 says that sparser forgets less. R^2 = 1 - residual /
total sum of squares over the points; the spread between seeds counts as residual, so it is low even
for a perfect relation if seeds differ. The line is a description, not a theory: Spearman's rho_S
(Pearson correlation of the ranks, ties at their mean rank) asks only whether forgetting rises with
density.

The densities of one seed share its initialisation and its data, so they are no independent points:
the jackknife leaves out whole seeds, all densities of a seed together. With a value for every point
the slope is the mean of the slopes of the seeds, and its interval their t interval. The band is
pointwise: it covers the line at each density with the stated level, not the whole line at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecl.metrics.bootstrap import (
    MIN_SEEDS,
    FloatArray,
    Interval,
    jackknife_interval,
)
from sparsecl.metrics.forgetting import finite

MIN_DENSITIES = 3
"""Two densities always lie on a line: that would be no evidence for one."""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """The fit over all seeds; intervals and band are None below MIN_SEEDS, and if the points
    without some seed have no line."""

    intercept: float
    """a, in the unit of F: the line at rho = 1."""
    slope: float
    """b, in the unit of F for each factor 10 of density."""
    intercept_interval: Interval | None
    slope_interval: Interval | None
    r_squared: float | None
    """None if F is the same everywhere."""
    spearman: float | None
    """In [-1, 1]; None if F is the same everywhere."""
    spearman_interval: Interval | None
    """None too if F is the same everywhere without some seed. Ends within [-1, 1]."""
    grid: tuple[float, ...]
    """Densities of the band, rising."""
    line: tuple[float, ...]
    """a + b log10(grid)."""
    band: tuple[Interval, ...] | None
    """Intervals of the line, one for each density of the grid."""
    densities: tuple[float, ...]
    """Densities with at least one value, rising."""
    num_seeds: int
    """Seeds with at least one value."""
    num_points: int
    num_missing: int
    """Points (seed, density) without a value: missing or diverged runs."""


@dataclass(frozen=True)
class _Points:
    """All points with a value, flat: [M] each."""

    x: FloatArray
    """log10 of density."""
    y: FloatArray
    seed: NDArray[np.int64]
    num_seeds: int


def density_relation(
    densities: Sequence[float],
    forgetting: ArrayLike,
    *,
    grid: Sequence[float] | None = None,
    level: float = 0.95,
) -> Relation:
    """Fit forgetting against density.

    Args:
        densities: [D], each in (0, 1], in any order.
        forgetting: [S, D], row s is one seed; None or not finite = no value. Such a point is left
            out and counted. A diverged run is evidence in itself, and the caller must show it.
        grid: densities of the band; by default 50 from the smallest to the largest, evenly spaced
            in the logarithm.

    Raises:
        ValueError: for fewer than 3 different densities with a value, one outside (0, 1], or
            shapes that do not fit.
    """
    rho, table = _checked(densities, forgetting)
    known = np.isfinite(table)
    rows = np.flatnonzero(known.any(axis=1))
    seed, column = np.nonzero(known[rows])
    points = _Points(np.log10(rho)[column], table[rows][seed, column], seed, len(rows))
    used = np.unique(rho[column])
    at = np.geomspace(used[0], used[-1], 50) if grid is None else _densities(grid)
    x_grid = np.log10(at)
    ones = np.ones((1, len(rows)))
    intercept, slope = (float(value) for value in _fit(points, ones)[0])
    without = 1 - np.eye(len(rows))  # each row leaves one seed out
    fits, ranks = _fit(points, without), finite(float(_spearman(points, ones)[0]))
    at_grid = fits[:, :1] + fits[:, 1:] * x_grid
    line = intercept + slope * x_grid
    intervals = [
        _interval(value, left_out, level)
        for value, left_out in zip((intercept, slope), fits.T, strict=True)
    ]
    band = [_interval(*both, level) for both in zip(line.tolist(), at_grid.T, strict=True)]
    return Relation(
        intercept=intercept,
        slope=slope,
        intercept_interval=intervals[0],
        slope_interval=intervals[1],
        r_squared=_r_squared(points, intercept, slope),
        spearman=ranks,
        spearman_interval=_clipped(_interval(ranks, _spearman(points, without), level)),
        grid=tuple(at.tolist()),
        line=tuple(line.tolist()),
        band=tuple(one for one in band if one) or None,
        densities=tuple(used.tolist()),
        num_seeds=len(rows),
        num_points=len(points.y),
        num_missing=int(known.size - known.sum()),
    )


def _interval(estimate: float | None, left_out: FloatArray, level: float) -> Interval | None:
    """By the jackknife; None where there are too few seeds, or a value that is not finite."""
    if estimate is None or len(left_out) < MIN_SEEDS or not np.isfinite(left_out).all():
        return None
    return jackknife_interval(estimate, left_out, level)


def _clipped(found: Interval | None) -> Interval | None:
    """An interval of a correlation: nothing lies beyond -1 and 1."""
    return found and replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def _fit(points: _Points, counts: FloatArray) -> FloatArray:
    """Least squares with each seed counted `counts` [b, S] times: (a, b) in rows, NaN if vertical.

    A resample enters only through sums over its seeds, so each seed is summed once, beforehand.
    """
    middle = points.x.mean()  # keeps the determinant from cancelling
    x, y = points.x - middle, points.y
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y])
    sums = np.stack([np.bincount(points.seed, term, points.num_seeds) for term in terms])
    m, sx, sy, sxx, sxy = (counts @ sums.T).T
    spread = m * sxx - sx * sx
    one_density = spread <= 1e-12 * m * sxx
    slope = np.where(one_density, np.nan, m * sxy - sx * sy) / np.where(one_density, 1.0, spread)
    return np.stack([(sy - slope * sx) / m - slope * middle, slope], axis=1)


def _spearman(points: _Points, counts: FloatArray) -> FloatArray:
    """Rank correlation [b] with each seed counted `counts` [b, S] times; NaN if undefined.

    c copies of a value hold c ranks and get their mean, as ties do.
    """
    weight = counts[:, points.seed]  # [b, M]
    ranks = []
    for values in (points.x, points.y):
        _, group = np.unique(values, return_inverse=True)
        member = np.eye(group.max() + 1)[group]  # [M, groups]
        size = weight @ member
        rank = np.cumsum(size, axis=1) - (size - 1) / 2
        middle = (weight.sum(axis=1, keepdims=True) + 1) / 2
        ranks.append(rank[:, group] - middle)
    x, y = ranks
    scale = np.sqrt((weight * x * x).sum(axis=1) * (weight * y * y).sum(axis=1))
    product = (weight * x * y).sum(axis=1)
    return np.where(scale > 0, product, np.nan) / np.where(scale > 0, scale, 1.0)


def _r_squared(points: _Points, intercept: float, slope: float) -> float | None:
    total = float(np.sum((points.y - points.y.mean()) ** 2))
    residual = float(np.sum((points.y - intercept - slope * points.x) ** 2))
    return 1 - residual / total if np.ptp(points.y) > 0 else None


def _checked(densities: Sequence[float], forgetting: ArrayLike) -> tuple[FloatArray, FloatArray]:
    rho = _densities(densities)
    table = np.asarray(forgetting, dtype=np.float64)  # None becomes NaN
    if table.ndim != 2 or table.shape[1] != len(rho):
        raise ValueError(
            f"expected forgetting [seeds, {len(rho)} densities], got shape {table.shape}"
        )
    found = len(np.unique(rho[np.isfinite(table).any(axis=0)]))
    if found < MIN_DENSITIES:
        raise ValueError(
            f"a relation needs values at {MIN_DENSITIES} or more different densities, got {found}"
        )
    return rho, table


def _densities(values: Sequence[float]) -> FloatArray:
    rho = np.asarray(values, dtype=np.float64)
    wrong = rho[~((rho > 0) & (rho <= 1))]
    if len(wrong):
        raise ValueError(f"density must be in (0, 1], got {float(wrong[0])}")
    return rho
