"""Tests of one contrast between two arms that ran the same seeds: D_s = metric_A,s - metric_B,s.

- Sign flip: under the null hypothesis D_s and -D_s are equally likely, so all 2^n patterns of
  signs are. p = share of the patterns with |sum| at least the observed one (two-sided). No
  distribution is assumed and the size is exact, but p is never below 2^(1-n): 5 seeds cannot reach
  0.05, whatever they show. Such a test is refused (p = None with the reason), so that "not
  significant" is never read off a test that could not have said anything else. Fisher 1935, The
  Design of Experiments; beyond 20 seeds N random patterns and p = (k + 1) / (N + 1) (Phipson &
  Smyth 2010).
- TOST: equivalence within +- margin, two one-sided t tests: p = max(P(T > (mean + margin) / se),
  P(T < (mean - margin) / se)). p <= alpha exactly if the 1 - 2 alpha t interval lies within the
  margin. Schuirmann 1987. A difference that is not significant is not thereby an equivalence.
- Cohen's d_z = mean(D) / sd(D): the effect in units of its own spread over seeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sparsecl.metrics.bootstrap import DRAWS, FloatArray, Interval, estimate_mean, t_interval

MAX_EXACT = 20
"""Seeds up to which all sign patterns are counted: 2^19 sums, 20 ms and 4 MiB."""

NUM_PATTERNS = 100_000
"""Random patterns beyond that; a p near 0.05 then has a standard error of 0.0007."""


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
class PairedTest:
    """Everything there is to say about one contrast."""

    num_seeds: int
    mean: float | None
    """Mean difference in the metric's unit; None without seeds."""
    sd: float | None
    percentile: Interval | None
    bca: Interval | None
    t: Interval | None
    p: float | None
    """Sign-flip p, not corrected. None where it could never be <= alpha."""
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
    """None below 2 seeds or if all differences are equal."""
    equivalence: Equivalence | None
    """None if no margin was given or there are fewer than 2 seeds."""


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
) -> PairedTest:
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
    if num_contrasts < 1:
        raise ValueError(f"num_contrasts must be >= 1, got {num_contrasts}")
    n = len(data)
    estimate = estimate_mean(data, level=1 - alpha, draws=draws, rng=rng) if n else None
    smallest = smallest_p(n)
    reachable = smallest <= alpha
    return PairedTest(
        num_seeds=n,
        mean=estimate.mean if estimate else None,
        sd=estimate.sd if estimate else None,
        percentile=estimate.percentile if estimate else None,
        bca=estimate.bca if estimate else None,
        t=estimate.t if estimate else None,
        p=sign_flip(data, rng=rng) if reachable else None,
        why=reach(n, alpha, num_contrasts),
        alpha=alpha,
        smallest_p=smallest,
        reachable=reachable,
        seeds_needed=seeds_needed(alpha),
        num_contrasts=num_contrasts,
        family_reachable=smallest <= alpha / num_contrasts,
        family_seeds_needed=seeds_needed(alpha, num_contrasts),
        d_z=cohen_dz(data),
        equivalence=tost(data, margin, alpha=alpha) if margin is not None and n > 1 else None,
    )


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


def smallest_p(num_seeds: int) -> float:
    """The smallest two-sided p that `sign_flip` can return for so many seeds."""
    exact = min(1.0, 2.0 ** (1 - num_seeds))
    return exact if num_seeds <= MAX_EXACT else max(exact, 1 / (1 + NUM_PATTERNS))


def seeds_needed(alpha: float, num_contrasts: int = 1) -> int:
    """Fewest seeds with 2^(1-n) <= alpha / num_contrasts, the hurdle of Holm's first step."""
    num_seeds = 1
    while 2.0 ** (1 - num_seeds) > alpha / num_contrasts:
        num_seeds += 1
    return num_seeds


def reach(num_seeds: int, alpha: float = 0.05, num_contrasts: int = 1) -> str | None:
    """In words what so many seeds cannot show; None if they can reach alpha in the family."""
    smallest = smallest_p(num_seeds)
    if smallest <= alpha / num_contrasts:
        return None
    seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
    family = f"{seeds_needed(alpha, num_contrasts)} with Holm over {num_contrasts} contrasts"
    if smallest > alpha:
        text = f"{seeds}: the smallest reachable p is {smallest:.4g} > {alpha:.4g}"
        text += f"; {seeds_needed(alpha)} seeds are needed"
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
    from scipy import special

    data = _checked(differences, alpha)
    if not (np.isfinite(margin) and margin > 0):
        raise ValueError(f"margin must be a positive number of the metric's unit, got {margin}")
    if alpha >= 0.5:
        raise ValueError(f"alpha of an equivalence test must be below 0.5, got {alpha}")
    interval = t_interval(data, 1 - 2 * alpha)
    n, middle = len(data), float(data.mean())
    error = float(data.std(ddof=1)) / n**0.5
    distance = margin - abs(middle)  # to the nearer end, which has the larger of the two p
    if error > 0:
        p = float(special.stdtr(n - 1, -distance / error))
    else:
        p = 0.0 if distance >= 0 else 1.0
    inside = -margin <= interval.low and interval.high <= margin
    return Equivalence(margin=margin, alpha=alpha, p=p, interval=interval, inside=inside)


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
