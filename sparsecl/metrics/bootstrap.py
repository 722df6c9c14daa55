"""Intervals over seeds: Student's t in front, the bootstrap beside it where seeds suffice.

The unit of replication is the seed (initialisation, data order and mask together), so a resample
draws n whole seeds with replacement and takes everything measured under them along; two arms that
are compared are resampled with the same seeds. With theta the estimate, theta*_b the B resampled
values and q the quantile of theta*, at level 1 - 2 alpha:

    percentile: [q(alpha), q(1 - alpha)]
    BCa:        [q(Phi(z0 + (z0 + z) / (1 - c (z0 + z)))) for z = Phi^-1(alpha), Phi^-1(1 - alpha)]
                z0 = Phi^-1(share of theta*_b below theta, ties half)              bias
                c  = sum_i (m - m_i)^3 / (6 (sum_i (m - m_i)^2)^1.5)               acceleration
                m_i = theta without seed i, m = their mean
    t:          mean +- t_(n-1)(1 - alpha) s / sqrt(n)
    jackknife:  theta +- t_(n-1)(1 - alpha) sqrt((n - 1) / n sum_i (m_i - m)^2), = t for a mean

Efron & Tibshirani 1993, An Introduction to the Bootstrap, ch. 11-14; hierarchical: Davison &
Hinkley 1997, sec. 3.8. Below about 10 seeds both bootstrap intervals are too narrow: few values
know little of their tails, and a resampled mean has the variance s^2 (n - 1) / n^2 instead of
s^2 / n. Simulated coverage of a nominal 95 % (normal; t with 3 degrees of freedom; lognormal of
sigma 0.75), tests/metrics/test_coverage.py:

    seeds   percentile            t
    5       84  82  78 %          95  96  87 %
    6       86  86  80 %          95  96  88 %
    8       89  87  83 %          95  96  88 %
    10      90  89  84 %          95  96  89 %
    20      92  92  90 %          95  95  91 %

Not scipy.stats.bootstrap: it draws by itself, while several figures stand on one set of draws here,
seeds may have several orders, and equal draws that differ in the last bit must count as ties.

No interval repairs a skew that few seeds do not show. Nothing here is random by itself: the caller
hands in the generator.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]

MIN_SEEDS = 6
"""Fewest seeds for a statement with a level. Fewer can reach no p <= 0.05 by sign flips, and their
t interval would rest on the normal distribution alone."""

MIN_BOOTSTRAP = 10
"""Fewest seeds for a bootstrap interval."""

DRAWS = 10_000
"""Resamples of one interval; its ends then repeat within about 2 % of its width."""

BLOCK = 1000
"""Resamples handed to a statistic at once: bounds its memory, changes no result."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided confidence interval in the unit of its statistic."""

    low: float
    high: float
    level: float
    """Nominal coverage, in (0, 1)."""
    method: Literal["percentile", "BCa", "t", "hierarchical"]

    def contains(self, value: float) -> bool:
        """True if `value` lies inside, ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """A mean over seeds with its intervals."""

    num_seeds: int
    mean: float
    sd: float | None
    """Standard deviation over seeds, ddof 1; None below 2 seeds."""
    t: Interval | None
    """The one in front; None below MIN_SEEDS."""
    percentile: Interval | None
    """Like BCa None below MIN_BOOTSTRAP."""
    bca: Interval | None


def bootstrap(
    statistic: Callable[[IndexArray], FloatArray],
    num_seeds: int,
    *,
    draws: int = DRAWS,
    rng: np.random.Generator,
) -> FloatArray:
    """The statistic on `draws` resamples of the seeds.

    Args:
        statistic: maps seed indices [b, num_seeds], one resample a row, to values [b, ...]. It is
            called on blocks of rows and must treat each row for itself.
        rng: it is advanced; the same state gives the same draws.

    Returns:
        Values [draws, ...].

    Raises:
        ValueError: below 2 seeds (all resamples would be equal) or below 1 draw.
    """
    if num_seeds < 2:
        raise ValueError(f"a bootstrap over seeds needs at least 2 seeds, got {num_seeds}")
    if draws < 1:
        raise ValueError(f"draws must be >= 1, got {draws}")
    indices = rng.integers(0, num_seeds, size=(draws, num_seeds))
    blocks = [statistic(indices[at : at + BLOCK]) for at in range(0, draws, BLOCK)]
    return np.concatenate(blocks)


def seed_counts(indices: IndexArray, num_seeds: int) -> FloatArray:
    """How often each seed was drawn: [b, n] indices -> [b, num_seeds] counts; rows sum to n.

    Sums over a resample are then one matrix product: seed_counts @ values_per_seed.
    """
    rows = np.arange(len(indices))[:, None] * num_seeds
    flat = np.bincount((rows + indices).ravel(), minlength=len(indices) * num_seeds)
    return flat.reshape(len(indices), num_seeds).astype(np.float64)


def bootstrap_means(
    values: ArrayLike, *, draws: int = DRAWS, rng: np.random.Generator
) -> FloatArray:
    """Means [draws] of resampled seeds, `values` [n] being one number for each seed."""
    data = _finite(values)
    n = len(data)
    return bootstrap(lambda rows: seed_counts(rows, n) @ data / n, n, draws=draws, rng=rng)


def hierarchical_means(
    orders_by_seed: Sequence[ArrayLike], *, draws: int = DRAWS, rng: np.random.Generator
) -> FloatArray:
    """Means [draws] over seeds of the mean over domain orders: seeds first, then their orders.

    Args:
        orders_by_seed: for each seed the values of its orders; the numbers of orders may differ.

    Every seed has weight 1/n whatever its number of orders. With one order for each seed this is
    `bootstrap_means`. A seed drawn twice draws its orders twice, independently.

    Raises:
        ValueError: below 2 seeds, for a seed without orders, or a value that is not finite.
    """
    rows = [_finite(values) for values in orders_by_seed]
    if not rows or min(len(row) for row in rows) == 0:
        raise ValueError("every seed needs at least one domain order")
    sizes = np.array([len(row) for row in rows])
    widest = int(sizes.max())
    table = np.array([np.pad(row, (0, widest - len(row))) for row in rows])

    def statistic(indices: IndexArray) -> FloatArray:
        size = sizes[indices][..., None]  # [b, n, 1]
        pick = (rng.random((*indices.shape, widest)) * size).astype(np.int64)
        picked = table[indices[..., None], pick]
        picked[np.arange(widest) >= size] = 0.0
        return (picked.sum(axis=2) / size[..., 0]).mean(axis=1)

    return bootstrap(statistic, len(rows), draws=draws, rng=rng)


def percentile_interval(
    values: FloatArray,
    level: float = 0.95,
    method: Literal["percentile", "hierarchical"] = "percentile",
) -> Interval:
    """Equal-tailed quantiles of bootstrap values [draws], interpolated linearly.

    Raises:
        ValueError: if a value is not finite or the level is not in (0, 1).
    """
    tail = tail_share(level)
    low, high = np.quantile(_finite(values), [tail, 1 - tail])
    return Interval(low=float(low), high=float(high), level=level, method=method)


def bca_interval(
    values: FloatArray, estimate: float, jackknife: ArrayLike, level: float = 0.95
) -> Interval:
    """Bias-corrected and accelerated interval.

    Args:
        values: bootstrap values [draws].
        estimate: the statistic on all seeds.
        jackknife: [n], the statistic with seed i left out.
    """
    from scipy import special  # on use: everything else here runs on NumPy alone

    tail = tail_share(level)
    draws = _finite(values)
    # Equal resamples can differ in the last bit; as ties they must count half all the same.
    slack = 1e-12 * float(np.abs(draws).max())
    below = np.mean(draws < estimate - slack) + np.mean(draws <= estimate + slack)
    # No resample on one side would send z0 to infinity: half a draw is put there.
    share = np.clip(below / 2, 0.5 / len(draws), 1 - 0.5 / len(draws))
    z0 = special.ndtri(share)
    z = z0 + special.ndtri(np.array([tail, 1 - tail]))
    ends = special.ndtr(z0 + z / (1 - _acceleration(_finite(jackknife)) * z))
    low, high = np.quantile(draws, ends)
    return Interval(low=float(low), high=float(high), level=level, method="BCa")


def half_width(values: ArrayLike, level: float = 0.95) -> FloatArray:
    """Half of Student's interval of the means over seeds of `values` [n, ...], each by itself.

    Raises:
        ValueError: below 2 seeds.
    """
    from scipy import special

    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    if n < 2:
        raise ValueError(f"a t interval needs at least 2 seeds, got {n}")
    return special.stdtrit(n - 1, 1 - tail_share(level)) * data.std(axis=0, ddof=1) / n**0.5


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval of a mean; exact for normal values.

    Raises:
        ValueError: below 2 values or for one that is not finite.
    """
    data = _finite(values)
    half, middle = float(half_width(data, level)), float(data.mean())
    return Interval(low=middle - half, high=middle + half, level=level, method="t")


def jackknife_interval(estimate: float, left_out: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval of a smooth statistic of the seeds; that of `t_interval` for a mean.

    Args:
        estimate: the statistic on all seeds.
        left_out: [n], the statistic with seed i left out.
    """
    data = _finite(left_out)
    half = (len(data) - 1) * float(half_width(data, level))
    return Interval(low=estimate - half, high=estimate + half, level=level, method="t")


def estimate_mean(
    values: ArrayLike, *, level: float = 0.95, draws: int = DRAWS, rng: np.random.Generator
) -> MeanEstimate:
    """Mean over seeds with the intervals that so many seeds support, one number for each seed.

    Hand in paired differences for the intervals of a contrast.

    Raises:
        ValueError: without values, or for one that is not finite.
    """
    data = _finite(values)
    n = len(data)
    if n == 0:
        raise ValueError("there is no seed to average over")
    middle = float(data.mean())
    percentile = bca = None
    if n >= MIN_BOOTSTRAP:
        means = bootstrap_means(data, draws=draws, rng=rng)
        percentile = percentile_interval(means, level)
        bca = bca_interval(means, middle, (data.sum() - data) / (n - 1), level)
    return MeanEstimate(
        num_seeds=n,
        mean=middle,
        sd=float(data.std(ddof=1)) if n > 1 else None,
        t=t_interval(data, level) if n >= MIN_SEEDS else None,
        percentile=percentile,
        bca=bca,
    )


def _acceleration(jackknife: FloatArray) -> float:
    """Skewness of the jackknife values over 6; 0 if they are all equal."""
    deviation = jackknife.mean() - jackknife
    scale = float(np.sum(deviation**2)) ** 1.5
    return float(np.sum(deviation**3)) / (6 * scale) if scale > 0 else 0.0


def tail_share(level: float) -> float:
    """Probability left out on either side of a two-sided interval.

    Raises:
        ValueError: if the level is not in (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be in (0, 1), got {level}. For 95 % write 0.95.")
    return (1 - level) / 2


def _finite(values: ArrayLike) -> FloatArray:
    """`values` as float64 [n]; a missing seed must be left out by the caller, who says so."""
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not np.isfinite(data).all():
        raise ValueError(
            f"expected a list of finite numbers, one for each seed, got {values!r:.80}"
        )
    return data
