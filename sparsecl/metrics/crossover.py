"""From which round on a sparse arm is better than the dense one, and how sure that is.

n = seeds, J = rounds. Both arms give a curve [n, J] of a metric where lower is better (for a score
pass the negated curve), measured on the same fixed evaluation set after every round:

    d[s, j] = sparse[s, j] - dense[s, j]
    D_j     = mean over seeds of d, then over rounds j-1, j, j+1 (at the edges: those that exist)
    j*      = the first j with D_j < 0, D_(j+1) < 0 and D_(j+2) < 0

Three rounds in a row and the moving average keep one lucky round from being a crossover. The price
is paid at the end of the stream: an arm that goes below in the last or last but one round has not
shown enough, and the answer is none, "not within J rounds". The stream ended; nothing says that the
crossover would not have come (it is censored).

Uncertainty: bootstrap over seeds, j* anew in each resample; a resample without one counts as "later
than J", so that ends of the interval may be unknown while the share of resamples with a crossover
is known. The definition and its constants are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecl.metrics.bootstrap import DRAWS, FloatArray, bootstrap, seed_counts, tail_share

WINDOW = 3
"""Rounds of the centred moving average; odd."""

CONSECUTIVE = 3
"""Rounds in a row, K, that must be below zero."""


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where the mean difference goes below zero and how often it does so over resamples.

    Rounds are numbered from `first_round` to `last_round`. None stands for "not within the stream".
    """

    round: int | None
    """j*."""
    stays: bool
    """There is a crossover, and the smoothed difference is below zero from it to the end."""
    lasting_round: int | None
    """First round from which it is below zero to the end, for at least K rounds; >= round."""
    median: int | None
    """Median of the resamples; None too below 2 seeds."""
    interval: tuple[int | None, int | None] | None
    """Percentile interval of the resamples, ends rounded outwards; None below 2 seeds."""
    level: float
    share: float | None
    """Share of resamples with a crossover, in [0, 1]; None below 2 seeds."""
    share_stays: float | None
    """Share of resamples with a crossover that stays."""
    num_seeds: int
    first_round: int
    last_round: int
    smoothed: tuple[float, ...]
    """D_j of each round, in the metric's unit."""

    @property
    def num_rounds(self) -> int:
        """J, the rounds that were looked at."""
        return len(self.smoothed)

    @property
    def from_start(self) -> bool:
        """Below zero in the first rounds already: the arm is better, but nothing was crossed."""
        return self.round == self.first_round

    def text(self) -> str:
        """One honest sentence: what was found, within what, and how often."""
        if self.round is None:
            found = f"not within {self.num_rounds} rounds"
            return f"{found} ({self._support('crossed in ')})"
        found = f"round {self.round}"
        if self.interval is not None:
            late = f"later than {self.last_round}"
            low, high = (late if end is None else str(end) for end in self.interval)
            found += f" [{low}, {high}]"
        notes = ["below from the first round on"] if self.from_start else []
        notes += [] if self.stays else ["not below to the end"]
        return "; ".join([f"{found}, {self._support()}", *notes])

    def _support(self, verb: str = "") -> str:
        if self.share is None:
            return "one seed: no interval"
        return f"{verb}{percent(self.share)} of resamples"


def crossover(
    sparse: ArrayLike,
    dense: ArrayLike,
    *,
    first_round: int = 1,
    window: int = WINDOW,
    consecutive: int = CONSECUTIVE,
    level: float = 0.95,
    draws: int = DRAWS,
    rng: np.random.Generator,
) -> Crossover:
    """Locate the crossover of two arms.

    Args:
        sparse: [n, J], lower is better; row s is one seed.
        dense: [n, J], the same seeds in the same order.
        first_round: number of the first column; 0 if it was measured before training.

    Raises:
        ValueError: if the shapes differ, a value is not finite (leave out that seed or that round
            in both arms, and say so), or window or consecutive make no sense.
    """
    # Smoothing is linear, so it may come before the mean over seeds, and is done only once.
    smoothed = moving_average(_difference(sparse, dense), window)
    n, num_rounds = smoothed.shape
    mean = smoothed.mean(axis=0)
    at, lasting = _both(mean[None], consecutive)[0].tolist()
    crossings = np.zeros((0, 2))
    if n > 1:
        crossings = bootstrap(
            lambda rows: _both(seed_counts(rows, n) @ smoothed / n, consecutive),
            n,
            draws=draws,
            rng=rng,
        )
    rounds = np.sort(crossings[:, 0])
    crossed = crossings[:, 0] < num_rounds
    stays = crossed & (crossings[:, 0] == crossings[:, 1])

    def number(index: float) -> int | None:
        return first_round + int(index) if index < num_rounds else None

    return Crossover(
        round=number(at),
        stays=at < num_rounds and at == lasting,
        lasting_round=number(lasting),
        median=number(rounds[(len(rounds) - 1) // 2]) if n > 1 else None,
        interval=_interval(rounds, level, number) if n > 1 else None,
        level=level,
        share=float(crossed.mean()) if n > 1 else None,
        share_stays=float(stays.mean()) if n > 1 else None,
        num_seeds=n,
        first_round=first_round,
        last_round=first_round + num_rounds - 1,
        smoothed=tuple(mean.tolist()),
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


def first_crossing(means: FloatArray, consecutive: int = CONSECUTIVE) -> NDArray[np.int64]:
    """Index of the first of `consecutive` negative values in each row of [b, J]; J if none."""
    if consecutive < 1:
        raise ValueError(f"consecutive must be >= 1 round, got {consecutive}")
    length = means.shape[1]
    if length < consecutive:
        return np.full(len(means), length)
    runs = np.lib.stride_tricks.sliding_window_view(means < 0, consecutive, axis=-1).all(axis=-1)
    return np.where(runs.any(axis=-1), runs.argmax(axis=-1), length)


def last_stretch(means: FloatArray, consecutive: int = CONSECUTIVE) -> NDArray[np.int64]:
    """Index from which each row of [b, J] is negative to its end; J if that is too short a run."""
    length = means.shape[1]
    above = ~(means < 0)[:, ::-1]  # from the end backwards
    negative = np.where(above.any(axis=1), above.argmax(axis=1), length)
    return np.where(negative >= consecutive, length - negative, length)


def percent(share: float) -> str:
    """A share as whole percent; 0 and 100 only if they are exact."""
    if 0 < share < 0.01:
        return "under 1 %"
    if 0.99 < share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def _both(means: FloatArray, consecutive: int) -> FloatArray:
    """First crossing and last stretch of each row, [b, 2]."""
    both = first_crossing(means, consecutive), last_stretch(means, consecutive)
    return np.stack(both, axis=1).astype(np.float64)


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


def _interval(
    rounds: FloatArray, level: float, number: Callable[[float], int | None]
) -> tuple[int | None, int | None]:
    """Percentile ends of sorted resamples that are resamples themselves, rounded outwards.

    Interpolation has no meaning between "round 7" and "later".
    """
    tail = tail_share(level) * (len(rounds) - 1)
    low, high = math.floor(tail), math.ceil(len(rounds) - 1 - tail)
    return number(rounds[low]), number(rounds[high])
