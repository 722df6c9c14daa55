"""Which arms nobody beats in all columns at once: the Pareto front, and how stable it is.

Arm q dominates arm p if q is at least as good in every column and better in one. The front is what
no arm dominates. From this definition:
- equal arms do not dominate each other: either all of them are on the front, or none;
- in a tie in one column the other columns decide;
- an arm with NaN in any column cannot be compared: it is never on the front and dominates nobody.

Membership is a yes or no made of noisy means, so it comes with its share of bootstrap resamples
over seeds (all arms of a seed together). Near ties a share of about one half says "undecided".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecl.metrics.bootstrap import (
    DRAWS,
    MIN_SEEDS,
    FloatArray,
    IndexArray,
    bootstrap,
    seed_counts,
)

Better = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """One arm."""

    name: str
    values: tuple[float | None, ...]
    """Mean over seeds of each column; None if a seed has no value there."""
    on_front: bool
    share: float | None
    """Share of resamples with the arm on the front, in [0, 1]; None below MIN_SEEDS."""


def pareto_front(
    names: Sequence[str],
    values: ArrayLike,
    better: Sequence[Better],
    *,
    draws: int = DRAWS,
    rng: np.random.Generator,
) -> list[ParetoPoint]:
    """The arms in the order given, with their membership and its share.

    Args:
        names: [N] arms.
        values: [S, N, C], column c of arm n for seed s. A value that is not finite (a diverged or
            missing run) keeps the arm off the front in every resample: the mean of the seeds that
            survived would flatter it.
        better: [C] directions.

    Raises:
        ValueError: if the shapes do not fit.
    """
    data = np.asarray(values, dtype=np.float64)
    data = np.where(np.isfinite(data), data, np.nan)
    if data.ndim != 3 or data.shape[1:] != (len(names), len(better)) or data.shape[0] == 0:
        wanted = f"[seeds, {len(names)} arms, {len(better)} columns]"
        raise ValueError(f"expected values {wanted}, got shape {data.shape}")
    means = data.mean(axis=0)
    on_front = front(means, better)
    enough = len(data) >= MIN_SEEDS
    share = front_share(data, better, draws=draws, rng=rng) if enough else None
    return [
        ParetoPoint(
            name=name,
            values=tuple(None if np.isnan(value) else float(value) for value in means[index]),
            on_front=bool(on_front[index]),
            share=None if share is None else float(share[index]),
        )
        for index, name in enumerate(names)
    ]


def front(points: ArrayLike, better: Sequence[Better]) -> NDArray[np.bool_]:
    """Which of the points [..., N, C] are on the front of their N: bool [..., N].

    Raises:
        ValueError: if `better` does not name a direction for each column, or there is none.
    """
    values = np.asarray(points, dtype=np.float64)
    if values.ndim < 2 or values.shape[-1] != len(better) or not better:
        raise ValueError(f"one direction for each column: got {len(better)}, {values.shape}")
    shape = (*values.shape[:-1], values.shape[-2])
    no_worse, is_better = np.ones(shape, dtype=bool), np.zeros(shape, dtype=bool)
    for column, direction in enumerate(better):
        value = values[..., column] if _lower(direction) else -values[..., column]
        mine, other = value[..., :, None], value[..., None, :]
        no_worse &= other <= mine  # False wherever one of them is NaN
        is_better |= other < mine
    beaten = np.asarray((no_worse & is_better).any(axis=-1))
    return ~beaten & ~np.asarray(np.isnan(values).any(axis=-1))


def front_share(
    values: FloatArray,
    better: Sequence[Better],
    *,
    draws: int = DRAWS,
    rng: np.random.Generator,
) -> FloatArray:
    """Share of resamples of the seeds [S, N, C] in which each arm is on the front, [N].

    Raises:
        ValueError: below 2 seeds.
    """
    num_seeds, num_arms, num_columns = values.shape
    flat = values.reshape(num_seeds, -1)

    def statistic(indices: IndexArray) -> FloatArray:
        counts = seed_counts(indices, num_seeds)
        # Seed by seed and not as a matrix product, which may round equal arms differently and so
        # break their tie. NaN * 0 is NaN: a gap counts in resamples without its seed too.
        sums = np.zeros((len(counts), flat.shape[1]))
        for seed in range(num_seeds):
            sums += counts[:, seed, None] * flat[seed]
        points = (sums / num_seeds).reshape(-1, num_arms, num_columns)
        return front(points, better).astype(np.float64)

    return bootstrap(statistic, num_seeds, draws=draws, rng=rng).mean(axis=0)


def _lower(direction: str) -> bool:
    if direction not in ("lower", "higher"):
        raise ValueError(f"better must be lower or higher, got {direction!r}")
    return direction == "lower"
