"""Tests of one contrast between two arms, in a metric of which every seed gives one value.

Paired, where the runs of a seed read the same data in the same order: D_s = metric_A,s -
metric_B,s. Unpaired elsewhere: the values of A and of B are two groups.

- Sign flip: under the null hypothesis D_s and -D_s are equally likely, so all 2^n patterns of
  signs are. p = share of the patterns with |sum| at least the observed one (two-sided). No
  distribution is assumed and the size is exact, but p is never below 2^(1-n): 5 seeds cannot reach
  0.05, whatever they show. Such a test is refused (p = None with the reason), so that "not
  significant" is never read off a test that could not have said anything else. Fisher 1935, The
  Design of Experiments; beyond 20 seeds N random patterns and p = (k + 1) / (N + 1) (Phipson &
  Smyth 2010).
- Permutation of the groups: under the null hypothesis every choice of n of the n + m values is as
  likely to be A. p = share of the choices whose means lie at least as far apart; never below
  2 / C(2n, n) for equal groups. Refused like the above; drawn beyond MAX_CHOICES.
  Not scipy.stats.permutation_test: its two-sided p is twice the smaller tail, which is another
  number for groups of unequal size, and 20 pairs take it a million calls for our 19 additions.
- Intervals: Student's t of D; of two groups Welch's, with Satterthwaite's degrees of freedom.
- TOST: equivalence within +- margin, two one-sided t tests: p = max(P(T > (mean + margin) / se),
  P(T < (mean - margin) / se)). p <= alpha exactly if the 1 - 2 alpha t interval lies within the
  margin. Schuirmann 1987. A difference that is not significant is not thereby an equivalence.
- Cohen's d_z = mean(D) / sd(D): the effect in units of its own spread over seeds; paired only.

Below MIN_SEEDS (metrics/bootstrap.py) there is no interval, no d_z and no equivalence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sparsecl.metrics.bootstrap import (
    DRAWS,
    MIN_BOOTSTRAP,
    MIN_SEEDS,
    FloatArray,
    Interval,
    bootstrap_means,
    estimate_mean,
    percentile_interval,
    tail_share,
)

MAX_EXACT = 20
"""Seeds up to which all sign patterns are counted: 2^19 sums, 20 ms and 4 MiB."""

MAX_CHOICES = 200_000
"""Choices of a group up to which all are tried: C(20, 10) = 184,756 for ten seeds each."""

NUM_PATTERNS = 100_000
"""Random patterns or choices beyond that; a p near 0.05 then has a standard error of 0.0007."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Differences of two arms over the seeds that both have."""

    seeds: tuple[int, ...]
    """Rising."""
    differences: tuple[float, ...]
    """First arm minus second arm, one for each seed."""
    left_out: tuple[int, ...]
    """Seeds without a finite value in both arms. Diverged runs are among them: name them."""


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Result of the two one-sided tests."""

    margin: float
    """In the metric's unit, fixed before the data were seen."""
    alpha: float
    p: float
    interval: Interval
    """t interval of level 1 - 2 alpha."""
    inside: bool
    """The interval lies within [-margin, margin]: equivalent at alpha. Same as p <= alpha."""


@dataclass(frozen=True, kw_only=True)
class ContrastTest:
    """Everything there is to say about one contrast."""

    paired: bool
    num_seeds: int
    """Pairs; of two groups the seeds of the smaller one."""
    mean: float | None
    """Mean difference in the metric's unit; None without seeds."""
    sd: float | None
    """Of the differences, ddof 1; None for groups and below 2 pairs."""
    t: Interval | None
    """Of the mean difference, like all intervals None below MIN_SEEDS."""
    percentile: Interval | None
    """None below MIN_BOOTSTRAP, as BCa, which groups have not."""
    bca: Interval | None
    p: float | None
    """Permutation p, not corrected. None where it could never be <= alpha."""
    why: str | None
    """The reason if p is None; else what hinders the whole family, or None."""
    alpha: float
    smallest_p: float
    """The smallest p that this many seeds can reach."""
    reachable: bool
    """smallest_p <= alpha."""
    seeds_needed: int
    """Seeds from which alpha is reachable."""
    num_contrasts: int
    """Size of the family that p will be corrected over with Holm's method."""
    family_reachable: bool
    """smallest_p <= alpha / num_contrasts. If that fails for every contrast of the family, Holm's
    method rejects none of them whatever the data say."""
    family_seeds_needed: int
    d_z: float | None
    """None below MIN_SEEDS, if all differences are equal, and for groups."""
    equivalence: Equivalence | None
    """None if no margin was given or there are fewer than MIN_SEEDS seeds."""


def pair(first: Mapping[int, float | None], second: Mapping[int, float | None]) -> Pairs:
    """Match two arms by seed; a value that is None or not finite is missing."""
    kept, left_out = {}, []
    for seed in sorted({*first, *second}):
        a, b = first.get(seed), second.get(seed)
        if a is None or b is None or not np.isfinite(a) or not np.isfinite(b):
            left_out.append(seed)
        else:
            kept[seed] = float(a) - float(b)
    return Pairs(seeds=tuple(kept), differences=tuple(kept.values()), left_out=tuple(left_out))


def paired_test(
    differences: ArrayLike,
    *,
    alpha: float = 0.05,
    margin: float | None = None,
    num_contrasts: int = 1,
    draws: int = DRAWS,
    rng: np.random.Generator,
) -> ContrastTest:
    """All figures of one contrast, from the differences [n], one for each seed.

    Intervals have the level 1 - alpha. Any n is accepted, 0 too: what n cannot support is None.

    Args:
        margin: equivalence margin in the metric's unit; None skips that test.
        num_contrasts: planned contrasts that Holm corrects together, this one included.

    Raises:
        ValueError: for a difference that is not finite, or alpha, margin or num_contrasts that
            make no sense.
    """
    data = _checked(differences, alpha)
    n, enough = len(data), len(data) >= MIN_SEEDS
    estimate = estimate_mean(data, level=1 - alpha, draws=draws, rng=rng) if n else None
    return ContrastTest(
        paired=True,
        num_seeds=n,
        mean=estimate.mean if estimate else None,
        sd=estimate.sd if estimate else None,
        t=estimate.t if estimate else None,
        percentile=estimate.percentile if estimate else None,
        bca=estimate.bca if estimate else None,
        p=sign_flip(data, rng=rng) if smallest_p(n) <= alpha else None,
        d_z=cohen_dz(data) if enough else None,
        equivalence=tost(data, margin, alpha=alpha) if enough and margin is not None else None,
        **_reach_of((n,), alpha, num_contrasts),
    )


def unpaired_test(
    first: ArrayLike,
    second: ArrayLike,
    *,
    alpha: float = 0.05,
    margin: float | None = None,
    num_contrasts: int = 1,
    draws: int = DRAWS,
    rng: np.random.Generator,
) -> ContrastTest:
    """All figures of one contrast, from the values of two arms that are not paired, [n] and [m].

    Arguments and errors as `paired_test`; the mean is that of the first minus that of the second.
    """
    a, b = _checked(first, alpha), _checked(second, alpha)
    n = min(len(a), len(b))
    t = percentile = equivalence = None
    level = 1 - alpha
    if n >= MIN_SEEDS:
        t = _t(*_welch(a, b), level)
        if margin is not None:
            equivalence = _equivalence(*_welch(a, b), margin, alpha)
    if n >= MIN_BOOTSTRAP:
        means = [bootstrap_means(values, draws=draws, rng=rng) for values in (a, b)]
        percentile = percentile_interval(means[0] - means[1], level)
    return ContrastTest(
        paired=False,
        num_seeds=n,
        mean=float(a.mean() - b.mean()) if n else None,
        sd=None,
        t=t,
        percentile=percentile,
        bca=None,
        p=permutation(a, b, rng=rng) if smallest_p(len(a), len(b)) <= alpha else None,
        d_z=None,
        equivalence=equivalence,
        **_reach_of((len(a), len(b)), alpha, num_contrasts),
    )


def _reach_of(sizes: tuple[int, ...], alpha: float, num_contrasts: int) -> dict[str, Any]:
    """The fields that tell what so many seeds can show; `sizes` is (n,) or (n, m)."""
    if num_contrasts < 1:
        raise ValueError(f"num_contrasts must be >= 1, got {num_contrasts}")
    smallest, paired = smallest_p(*sizes), len(sizes) == 1
    return {
        "why": reach(*sizes, alpha=alpha, num_contrasts=num_contrasts),
        "alpha": alpha,
        "smallest_p": smallest,
        "reachable": smallest <= alpha,
        "seeds_needed": seeds_needed(alpha, paired=paired),
        "num_contrasts": num_contrasts,
        "family_reachable": smallest <= alpha / num_contrasts,
        "family_seeds_needed": seeds_needed(alpha, num_contrasts, paired=paired),
    }


def sign_flip(differences: ArrayLike, *, rng: np.random.Generator | None = None) -> float:
    """Two-sided p of the sign-flip permutation test on the mean of `differences` [n].

    Exact for n <= 20, where it is a multiple of 2^(1-n); beyond, `rng` draws the patterns. This is
    the bare p: `paired_test` also refuses it where n is too small to mean anything.

    Raises:
        ValueError: without differences, for one that is not finite, or beyond 20 without `rng`.
    """
    data = _checked(differences)
    if len(data) == 0:
        raise ValueError("a sign-flip test needs at least one difference")
    # Sums of equal size can differ by rounding; as ties they must count as "at least as large".
    observed = abs(data.sum()) - 1e-12 * np.abs(data).sum()
    if len(data) <= MAX_EXACT:
        sums = data[:1]  # the first sign stays +: the other half are these patterns negated
        for value in data[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= observed))
    if rng is None:
        raise ValueError(f"{len(data)} seeds are too many to try all signs; hand in rng")
    signs = rng.integers(0, 2, size=(NUM_PATTERNS, len(data)), dtype=np.int8)
    sums = signs @ (2 * data) - data.sum()  # 0/1 instead of -1/+1
    return float((1 + np.count_nonzero(np.abs(sums) >= observed)) / (1 + NUM_PATTERNS))


def permutation(
    first: ArrayLike, second: ArrayLike, *, rng: np.random.Generator | None = None
) -> float:
    """Two-sided p of the permutation test on the difference of the means of two groups.

    Exact up to MAX_CHOICES; beyond, `rng` draws the choices. The bare p, as `sign_flip`.

    Raises:
        ValueError: without values, for one that is not finite, or beyond MAX_CHOICES without `rng`.
    """
    a, b = _checked(first), _checked(second)
    if min(len(a), len(b)) == 0:
        raise ValueError("a permutation test needs at least one value in each group")
    n, every = len(a), np.concatenate([a, b])
    every -= every.mean()  # then the sum of a group tells how far the means are apart
    observed = abs(every[:n].sum()) - 1e-12 * np.abs(every).sum()
    if math.comb(len(every), n) <= MAX_CHOICES:
        chosen = np.array(list(combinations(range(len(every)), n)))
        return float(np.mean(np.abs(every[chosen].sum(axis=1)) >= observed))
    if rng is None:
        raise ValueError(f"groups of {n} and {len(b)} are too many to try all; hand in rng")
    drawn = rng.permuted(np.tile(every, (NUM_PATTERNS, 1)), axis=1)[:, :n].sum(axis=1)
    return float((1 + np.count_nonzero(np.abs(drawn) >= observed)) / (1 + NUM_PATTERNS))


def smallest_p(num_seeds: int, other: int | None = None) -> float:
    """The smallest two-sided p that so many pairs, or two groups of so many seeds, can give."""
    if other is None:
        exact, limit = min(1.0, 2.0 ** (1 - num_seeds)), num_seeds <= MAX_EXACT
    else:
        choices = math.comb(num_seeds + other, num_seeds)
        # Of equal groups each choice has a mirror image that is as far apart.
        exact = min(1.0, (2 if num_seeds == other else 1) / choices)
        limit = choices <= MAX_CHOICES
    return exact if limit else max(exact, 1 / (1 + NUM_PATTERNS))


def seeds_needed(alpha: float, num_contrasts: int = 1, *, paired: bool = True) -> int:
    """Fewest seeds (of each arm) with a p <= alpha / num_contrasts, the hurdle of Holm's first
    step."""
    num_seeds = 1
    while smallest_p(num_seeds, None if paired else num_seeds) > alpha / num_contrasts:
        num_seeds += 1
    return num_seeds


def reach(
    num_seeds: int, other: int | None = None, *, alpha: float = 0.05, num_contrasts: int = 1
) -> str | None:
    """In words what so many seeds cannot show; None if they can reach alpha in the family."""
    smallest, paired = smallest_p(num_seeds, other), other is None
    if smallest <= alpha / num_contrasts:
        return None
    seeds = f"{num_seeds} seed{'s' if num_seeds != 1 else ''}"
    seeds = seeds if paired else f"unpaired, {num_seeds} and {other} seeds"
    needed = seeds_needed(alpha, num_contrasts, paired=paired)
    family = f"{needed} with Holm over {num_contrasts} contrasts"
    if smallest > alpha:
        text = f"{seeds}: the smallest reachable p is {smallest:.4g} > {alpha:.4g}"
        text += f"; {seeds_needed(alpha, paired=paired)} seeds are needed"
        return text if num_contrasts == 1 else f"{text}, {family}"
    return (
        f"{seeds}: the smallest reachable p is {smallest:.4g} > {alpha:.4g}/{num_contrasts}, so "
        f"Holm's method rejects nothing if all have as few; seeds needed: {family}"
    )


def tost(differences: ArrayLike, margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Test that |mean difference| < margin.

    Raises:
        ValueError: below 2 differences, for one that is not finite, or a margin <= 0.
    """
    data = _checked(differences, alpha)
    n = len(data)
    if n < 2:
        raise ValueError(f"an equivalence test needs at least 2 seeds, got {n}")
    error = float(data.std(ddof=1)) / n**0.5
    return _equivalence(float(data.mean()), error, n - 1, margin, alpha)


def _equivalence(
    middle: float, error: float, freedom: float, margin: float, alpha: float
) -> Equivalence:
    """TOST of a mean with its standard error and degrees of freedom."""
    from scipy import special

    if not (np.isfinite(margin) and margin > 0):
        raise ValueError(f"margin must be a positive number of the metric's unit, got {margin}")
    if alpha >= 0.5:
        raise ValueError(f"alpha of an equivalence test must be below 0.5, got {alpha}")
    interval = _t(middle, error, freedom, 1 - 2 * alpha)
    distance = margin - abs(middle)  # to the nearer end, which has the larger of the two p
    if error > 0:
        p = float(special.stdtr(freedom, -distance / error))
    else:
        p = 0.0 if distance >= 0 else 1.0
    inside = -margin <= interval.low and interval.high <= margin
    return Equivalence(margin=margin, alpha=alpha, p=p, interval=interval, inside=inside)


def _t(middle: float, error: float, freedom: float, level: float) -> Interval:
    """Student's interval of a mean with its standard error and degrees of freedom."""
    from scipy import special

    half = float(special.stdtrit(freedom, 1 - tail_share(level))) * error
    return Interval(low=middle - half, high=middle + half, level=level, method="t")


def _welch(a: FloatArray, b: FloatArray) -> tuple[float, float, float]:
    """Difference of the means, its standard error, Satterthwaite's degrees of freedom."""
    parts = [float(values.var(ddof=1)) / len(values) for values in (a, b)]
    total = sum(parts)
    terms = sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True))
    freedom = total**2 / terms if terms > 0 else float(len(a) + len(b) - 2)
    return float(a.mean() - b.mean()), total**0.5, freedom


def cohen_dz(differences: ArrayLike) -> float | None:
    """Mean over standard deviation of the differences; None below 2 or if they are all equal."""
    data = _checked(differences)
    # Equal values can leave a rounding error as their spread.
    if len(data) < 2 or np.ptp(data) == 0:
        return None
    return float(data.mean() / data.std(ddof=1))


def _checked(differences: ArrayLike, alpha: float = 0.05) -> FloatArray:
    data = np.asarray(differences, dtype=np.float64)
    if data.ndim != 1 or not np.isfinite(data).all():
        raise ValueError(
            f"expected finite differences, one for each seed, got {differences!r:.80}; "
            "leave out seeds without a value, and name them"
        )
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}. For 5 % write 0.05.")
    return data
