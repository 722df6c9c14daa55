"""From which round on a sparse arm is better than the dense one, told only where it is shown.

n = seeds, J = rounds. Both arms give a curve [n, J] of a metric where lower is better (for a score
pass the negated curve), measured on the same fixed evaluation set after every round:

    d[s, j] = sparse[s, j] - dense[s, j]
    j*      = the split that maximises sum_{j < j*} D_j, D_j = mean over seeds of d[s, j]

j* is the round at which the accumulated disadvantage begins to shrink, with `STRETCH` rounds or
more on either side. It is a crossover if the mean of d over the rounds before it is above zero and
the mean over those from it on is below zero, each by a one-sided sign-flip test at level alpha,
corrected over all splits (single-step maximum, Westfall & Young 1993): all rounds of a seed change
sign together, and the p of a side is the share of sign patterns in which its largest statistic
over the splits reaches the observed one. Curves may be as autocorrelated as they like.

Both tests at alpha keep the chance of a false crossover at alpha. A split is false if one of its
sides is no better than zero; the sides of all splits add up to one sum S of D, so if S >= 0 all
false splits fail after the split, and if S <= 0 all fail before it: one family errs, not two.

The interval holds the splits that no stretch of rounds speaks against: no stretch that begins at
the split is reliably worse, none that ends before it is reliably better, again by sign flips,
corrected over the stretches. An arm that is better from the first round on has crossed nothing.
The definition and its constants are ours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sparsecl.metrics.bootstrap import MIN_SEEDS, FloatArray

STRETCH = 3
"""Fewest rounds on either side of a crossover."""

WINDOW = 3
"""Rounds of the centred moving average that is drawn; odd."""

MAX_EXACT = 12
"""Seeds up to which all 2^n patterns of signs are tried."""

NUM_PATTERNS = 10_000
"""Random patterns beyond that, the observed one among them."""


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where the difference goes below zero, if that is shown.

    Rounds are numbered from `first_round` to `last_round`.
    """

    round: int | None
    """j*; None if no crossover is shown."""
    interval: tuple[int, int] | None
    """Rounds that the seeds do not speak against; None without a crossover."""
    p: float | None
    """The larger one of the two sides of j*, corrected over splits; None if nothing was tested."""
    why: str | None
    """The reason if nothing was tested."""
    level: float
    num_seeds: int
    first_round: int
    last_round: int
    smoothed: tuple[float, ...]
    """D_j averaged over neighbouring rounds, in the metric's unit: for the eye."""

    @property
    def num_rounds(self) -> int:
        """J, the rounds that were looked at."""
        return len(self.smoothed)

    @property
    def stays(self) -> bool:
        """There is a crossover, and from it on no round (smoothed) is worse again."""
        return self.round is not None and max(self.smoothed[self.round - self.first_round :]) <= 0

    def text(self) -> str:
        """One honest sentence: what was found, within what, and how sure it is."""
        if self.why is not None:
            return f"not tested: {self.why}"
        if self.round is None or self.interval is None:
            if max(self.smoothed) < 0:
                return "none: below from the first round on, nothing was crossed"
            return f"not shown within {self.num_rounds} rounds (p = {self.p:.2g})"
        low, high = self.interval
        notes = "" if self.stays else "; not below in every later round"
        return f"round {self.round} [{low}, {high}], p = {self.p:.2g}{notes}"


def crossover(
    sparse: ArrayLike,
    dense: ArrayLike,
    *,
    first_round: int = 1,
    level: float = 0.95,
    rng: np.random.Generator,
) -> Crossover:
    """Test and locate the crossover of two arms.

    Args:
        sparse: [n, J], lower is better; row s is one seed.
        dense: [n, J], the same seeds in the same order.
        first_round: number of the first column; 0 if it was measured before training.
        rng: draws the sign patterns beyond MAX_EXACT seeds.

    Raises:
        ValueError: if the shapes differ, or a value is not finite (leave out that seed or that
            round in both arms, and say so).
    """
    difference = _difference(sparse, dense)
    n, num_rounds = difference.shape
    at = p = interval = None
    why = _why_not(n, num_rounds)
    if why is None:
        signs = _patterns(n, rng)
        at, p = _split(difference, signs)
        if p <= 1 - level:
            low, high = _plausible(difference, signs, at, 1 - level)
            interval = first_round + low, first_round + high
        else:
            at = None
    return Crossover(
        round=None if at is None else first_round + at,
        interval=interval,
        p=p,
        why=why,
        level=level,
        num_seeds=n,
        first_round=first_round,
        last_round=first_round + num_rounds - 1,
        smoothed=tuple(moving_average(difference.mean(axis=0)).tolist()),
    )


def moving_average(curves: ArrayLike, window: int = WINDOW) -> FloatArray:
    """Centred moving average along the last axis; at the edges the mean of what exists.

    Raises:
        ValueError: for a window that is not odd and positive.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    values = np.asarray(curves, dtype=np.float64)
    half, length = window // 2, values.shape[-1]
    parts = [values[..., max(0, j - half) : j + half + 1].mean(axis=-1) for j in range(length)]
    return np.stack(parts, axis=-1)


def _why_not(num_seeds: int, num_rounds: int) -> str | None:
    if num_seeds < MIN_SEEDS:
        return f"{num_seeds} seed{'s' if num_seeds != 1 else ''}, {MIN_SEEDS} are needed"
    if num_rounds < 2 * STRETCH:
        return f"{num_rounds} rounds, {2 * STRETCH} are needed ({STRETCH} on either side)"
    return None


def _split(difference: FloatArray, signs: FloatArray) -> tuple[int, float]:
    """Index of j* and the larger p of its two sides; 1 if one of them is no stretch."""
    sums = np.pad(np.cumsum(difference, axis=1), ((0, 0), (1, 0)))
    at, length = int(np.argmax(sums.mean(axis=0))), difference.shape[1]
    if not STRETCH <= at <= length - STRETCH:
        return at, 1.0
    before = sums[:, STRETCH : length - STRETCH + 1]
    sides = before, before - sums[:, -1:]
    return at, max(_adjusted(side, signs, at - STRETCH) for side in sides)


def _plausible(
    difference: FloatArray, signs: FloatArray, split: int, alpha: float
) -> tuple[int, int]:
    """First and last split that no stretch of rounds speaks against; `split` is among them."""
    sums = np.pad(np.cumsum(difference, axis=1), ((0, 0), (1, 0)))
    kept = [split]
    for at in range(1, difference.shape[1]):
        against = np.hstack(
            [sums[:, at + 1 :] - sums[:, at : at + 1], sums[:, :at] - sums[:, [at]]]
        )
        if _adjusted(against, signs, None) > alpha:
            kept.append(at)
    return min(kept), max(kept)


def _adjusted(sums: FloatArray, signs: FloatArray, index: int | None) -> float:
    """One-sided p of column `index` of `sums` [n, m] being above zero, corrected over the columns.

    None = of the column that stands out most. The statistic is sum / sqrt(n sum of squares), which
    rises with Student's t and stays finite.
    """
    scale = np.sqrt(len(sums) * np.sum(sums**2, axis=0))
    values = signs @ np.divide(sums, scale, out=np.zeros_like(sums), where=scale > 0)
    observed = values[0].max() if index is None else values[0, index]
    # Equal sums can differ by rounding; as ties they must count as "at least as large".
    return float(np.mean(values.max(axis=1) >= observed - 1e-9))


def _patterns(num_seeds: int, rng: np.random.Generator) -> FloatArray:
    """Sign patterns [P, n], the observed one (all +) first."""
    if num_seeds <= MAX_EXACT:
        bits = np.arange(2**num_seeds)[:, None] >> np.arange(num_seeds) & 1
    else:
        bits = rng.integers(0, 2, size=(NUM_PATTERNS, num_seeds))
        bits[0] = 0
    return np.where(bits == 0, 1.0, -1.0)


def _difference(sparse: ArrayLike, dense: ArrayLike) -> FloatArray:
    first = np.asarray(sparse, dtype=np.float64)
    second = np.asarray(dense, dtype=np.float64)
    if first.ndim != 2 or first.shape != second.shape or first.size == 0:
        raise ValueError(
            "both arms need curves [seeds, rounds] of the same seeds and rounds, "
            f"got {first.shape} and {second.shape}"
        )
    difference = first - second
    bad = np.argwhere(~np.isfinite(difference))
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(f"curve {row} is not finite at round index {column}; leave it out by name")
    return difference
