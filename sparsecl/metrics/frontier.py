"""Learning against forgetting over learning rates, and two arms compared at equal learned loss.

A rate that is too low for an arm makes it learn little and forget little. At one rate for all arms
one measures where that rate puts each of them, so an arm is run at several rates and its runs make
a frontier:

    x(u), y(u)    learned loss and forgetting (both nats per token, lower is better) of one seed at
                  u = log(rate): a cubic spline through the runs (not-a-knot; de Boor 1978, A
                  Practical Guide to Splines, ch. 4), sampled densely, without the samples that
                  would be better than the best run
    f(L)          min { y(u) : x(u) <= L }: the smallest forgetting among the rates that learn at
                  least as well. Beyond the best learned loss a higher rate learns less and forgets
                  more; no L has its minimum there, so that branch drops out by itself.

Two arms: m = mean of f over a grid of learned losses that every seed of both arms reaches; one m
for each arm and seed. The contrast of m is tested as any other (metrics/significance.py). A seed's
frontier ends at its smallest forgetting and at its best learned loss. It is never continued, so
arms without a common range get no answer but the reason.

Why along the rate: x and y are smooth in log(rate), while f rises steeply near the best learned
loss. How often a nominal 95 % interval held the truth, 0, in 300 planted worlds with little noise
(8 seeds, 5 rates at factors of 2, sd 0.003; tests/metrics/test_frontier.py):

    the second arm                           straight lines   PCHIP   this spline
    needs a rate higher by a factor of 1.4   80 %             96 %    96 %
    needs one higher by a factor of 2.8      77 %             92 %    98 %
    stops half way on the same frontier       0 %             19 %    90 %

With sd 0.02, about that of a small study, the spline holds it in 92 to 95 %; its bias is below
0.002 nats there. Differences of that size mean nothing, however many seeds there are.

The definition is ours. A run that failed or diverged is no point of a frontier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sparsecl.metrics.bootstrap import FloatArray
from sparsecl.metrics.significance import ContrastTest, paired_test, unpaired_test

BETWEEN = 32
"""Samples from one rate to the next; the frontier is straight between them."""

GRID = 33
"""Learned losses at which two arms are compared, ends included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Forgetting of one arm and seed along something else, as a polyline."""

    along: FloatArray
    """[N], rising, nats per token: learned loss of a frontier, KL of a path (drift.py)."""
    forgotten: FloatArray
    """[N]: forgetting there, nats per token. It falls along a frontier."""
    log: bool = False
    """Straight in the logarithm of `along`, which is > 0."""

    @property
    def low(self) -> float:
        """Where it begins."""
        return float(self.along[0])

    @property
    def high(self) -> float:
        """Where it ends."""
        return float(self.along[-1])

    def at(self, place: ArrayLike) -> FloatArray:
        """Forgetting at these places, any shape.

        Raises:
            ValueError: for a place outside [low, high]; nothing is extrapolated.
        """
        x, along = np.asarray(place, dtype=np.float64), self.along
        if not ((x >= self.low) & (x <= self.high)).all():
            raise ValueError(f"the curve reaches from {self.low:g} to {self.high:g} only")
        if self.log:
            x, along = np.log(x), np.log(along)
        return np.interp(x, along, self.forgotten)


@dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """First arm minus second arm in forgetting, at equal values of what the curves run along:
    learned loss here, movement in drift.py."""

    seeds: tuple[int, ...]
    """Paired: those that both arms have; else those that one of them has. Rising."""
    left_out: tuple[int, ...]
    """Paired: seeds with a curve in one arm alone."""
    grid: FloatArray
    """[G] places in the common range; empty without one."""
    first: FloatArray
    """[G] forgetting of the first arm, mean over its seeds."""
    second: FloatArray
    """[G] the same of the second arm."""
    differences: tuple[float, ...]
    """Paired: mean over the grid, one for each seed; else empty."""
    test: ContrastTest | None
    """Of the mean over the grid; None without a common range."""
    why: str
    """The reason if there is no test, else empty."""


def frontier(rates: Sequence[float], learned: ArrayLike, forgotten: ArrayLike) -> Curve | None:
    """The frontier of one arm and seed.

    Args:
        rates: [R], distinct, > 0, in any order.
        learned: [R] learned loss, nats per token. None or not finite = no value; a rate without
            both values is left out.
        forgotten: [R] forgetting, nats per token, likewise.

    Returns:
        None with values at fewer than 2 rates: a point is no frontier.

    Raises:
        ValueError: for rates that are not distinct and > 0, or other shapes.
    """
    rate = np.asarray(rates, dtype=np.float64)
    x, y = (np.asarray(values, dtype=np.float64) for values in (learned, forgotten))
    if rate.ndim != 1 or not rate.shape == x.shape == y.shape:
        raise ValueError(
            f"expected one value for each rate, got {rate.shape}, {x.shape}, {y.shape}"
        )
    if not (rate > 0).all() or len(np.unique(rate)) < len(rate):
        raise ValueError(f"learning rates must be distinct and > 0, got {list(rates)}")
    order = np.argsort(rate)
    order = order[np.isfinite(x[order]) & np.isfinite(y[order])]
    if len(order) < 2:
        return None
    return _envelope(*_curve(np.log(rate[order]), x[order], y[order]))


def equal_loss(
    first: Mapping[int, Curve],
    second: Mapping[int, Curve],
    *,
    paired: bool,
    alpha: float = 0.05,
    margin: float | None = None,
    num_contrasts: int = 1,
    rng: np.random.Generator,
) -> Matched:
    """Compare two arms at equal learned loss.

    Args:
        first, second: seed -> frontier.
        paired: runs of one seed read the same data in the same order.
        alpha, margin, num_contrasts, rng: as in `significance.paired_test`.
    """
    options = {"alpha": alpha, "margin": margin, "num_contrasts": num_contrasts, "rng": rng}
    return matched(first, second, paired=paired, curve="frontier", place="learned loss", **options)


def matched(
    first: Mapping[int, Curve],
    second: Mapping[int, Curve],
    *,
    paired: bool,
    curve: str,
    place: str,
    alpha: float,
    margin: float | None,
    num_contrasts: int,
    rng: np.random.Generator,
) -> Matched:
    """Compare two arms where their curves have the same place.

    Args:
        first, second: seed -> curve.
        curve, place: words for the reason, if there is no common range.
    """
    if paired:
        seeds = sorted(first.keys() & second.keys())
        left_out = tuple(sorted(first.keys() ^ second.keys()))
        groups = [[arm[seed] for seed in seeds] for arm in (first, second)]
    else:
        seeds, left_out = sorted(first.keys() | second.keys()), ()
        groups = [[arm[seed] for seed in sorted(arm)] for arm in (first, second)]
    grid, why = _grid(groups, paired, curve, place)
    curves = [np.array([one.at(grid) for one in group]) for group in groups] if not why else []
    means = [curve.mean(axis=1) for curve in curves]
    options = {"alpha": alpha, "margin": margin, "num_contrasts": num_contrasts, "rng": rng}
    test, differences = None, ()
    if means and paired:
        differences = tuple((means[0] - means[1]).tolist())
        test = paired_test(differences, **options)
    elif means:
        test = unpaired_test(*means, **options)
    nothing = np.empty(0)
    return Matched(
        seeds=tuple(seeds),
        left_out=left_out,
        grid=grid,
        first=curves[0].mean(axis=0) if curves else nothing,
        second=curves[1].mean(axis=0) if curves else nothing,
        differences=differences,
        test=test,
        why=why,
    )


def common_range(curves: Sequence[Curve]) -> tuple[float, float]:
    """(low, high): the places that each of them reaches; high < low if there are none.

    Raises:
        ValueError: without curves.
    """
    if not curves:
        raise ValueError("there is no frontier")
    return max(one.low for one in curves), min(one.high for one in curves)


def _curve(u: FloatArray, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """x and y along u, the runs among the samples, none of which surpasses the best run."""
    from scipy.interpolate import CubicSpline  # on use, like all of SciPy here

    parts = [np.linspace(a, b, BETWEEN, endpoint=False) for a, b in zip(u, u[1:], strict=False)]
    spline = CubicSpline(u, np.stack([x, y]), axis=1)
    between_x, between_y = spline(np.concatenate(parts))
    # A spline swings past its points; better than the best run is not measured.
    kept = (between_x >= x.min()) & (between_y >= y.min())
    return np.concatenate([between_x[kept], x]), np.concatenate([between_y[kept], y])


def _envelope(x: FloatArray, y: FloatArray) -> Curve:
    """The samples that no other beats in both, by rising x."""
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    kept = np.concatenate([[True], y[1:] < np.minimum.accumulate(y)[:-1]])
    return Curve(along=x[kept], forgotten=y[kept])


def _grid(
    groups: Sequence[Sequence[Curve]], paired: bool, curve: str, place: str
) -> tuple[FloatArray, str]:
    """The places to compare at, even along the curves; or none and the reason."""
    nothing = np.empty(0)
    if not all(groups):
        return nothing, f"no seed has both {curve}s" if paired else f"an arm has no {curve}"
    every = [one for group in groups for one in group]
    low, high = common_range(every)
    if low < high:
        even = np.geomspace if every[0].log else np.linspace
        return np.clip(even(low, high, GRID), low, high), ""
    names = ("the first arm", "the second arm")
    ranges = [
        f"{name} from {ends[0]:.4g} to {ends[1]:.4g}" if ends[0] < ends[1] else f"{name} none"
        for name, ends in zip(names, map(common_range, groups), strict=True)
    ]
    return nothing, f"no {place} that every seed of both arms reaches ({'; '.join(ranges)})"
