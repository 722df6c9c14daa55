"""After how many phases a model learns a new domain worse: the onset of lost plasticity.

n = seeds, J = probes. A model that has learned x_j phases of a stream then learns a domain that the
stream does not have; L[s, j] is the loss that it reaches, x_0 < x_1 < ..., x_0 = 0 a fresh model.

    fresh:  d[s, j] = L[s, j] - L[s, 0]                          worse than one that learned nothing
    best:   d[s, j] = L[s, j] - L[s, b], b = argmin_{i < j} mean_s L[s, i]       worse than it was

The onset is the first x_j at which the mean of d over the seeds is above a margin and its Student's
t interval lies above zero. Intervals have the level 1 - alpha / m (Bonferroni), m = J - 1 for fresh
and all J (J - 1) / 2 pairs for best, since b is searched for: where no probe is worse than an
earlier one, an onset is told in alpha / 2 of studies at most. A model may learn a new domain better
for what it knows, and that may hide what it has lost: then best shows an onset and fresh none.

Hernandez-Garcia et al. 2026 (https://arxiv.org/abs/2606.24752) ask for the onset against the size
of the model. This definition is our own reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from sparsecl.metrics.bootstrap import MIN_SEEDS, Interval, t_interval

Against = Literal["fresh", "best"]


@dataclass(frozen=True, kw_only=True)
class Onset:
    """The first probe that is worse, if one is shown to be."""

    against: Against
    after: int | None
    """Phases learned before that probe; None if none is shown."""
    before: int | None
    """Those of the probe before: the onset lies between them."""
    base: int | None
    """Those of the probe that it is compared with."""
    difference: float | None
    """Mean over seeds, in the unit of the loss."""
    interval: Interval | None
    """Of it, corrected over the probes."""
    stays: bool
    """Every later probe is above that base by more than the margin too, in the mean."""
    why: str
    """The reason if nothing was tested."""
    margin: float
    last: int
    """Phases before the last probe: how far was looked."""

    def text(self) -> str:
        """What was found, between which probes and how sure; or up to where there is none."""
        if self.why:
            return f"not tested: {self.why}"
        if self.after is None or self.interval is None:
            return f"none within {self.last}"
        low, high = self.interval.low, self.interval.high
        of = "a fresh model" if self.base == 0 else f"its best, after {self.base}"
        later = "" if self.stays else "; not above it at every later probe"
        return (
            f"{self.after} (not at {self.before}): {self.difference:+.3f} [{low:.3f}, {high:.3f}] "
            f"above {of}{later}"
        )


def onset(
    loss: ArrayLike,
    after: Sequence[int],
    *,
    against: Against,
    margin: float = 0.0,
    level: float = 0.95,
) -> Onset:
    """Find the onset of one arm.

    Args:
        loss: [n, J], lower is better; row s is one seed, column 0 the fresh model.
        after: [J], phases learned before each probe, rising from 0.
        margin: difference that counts as none, in the unit of the loss.

    Raises:
        ValueError: if shapes differ, `after` does not rise from 0, or a loss is not finite.
    """
    values = np.asarray(loss, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(after) or not np.isfinite(values).all():
        raise ValueError(
            f"expected finite losses [seeds, {len(after)} probes], got shape {values.shape}"
        )
    if list(after[:1]) != [0] or any(x >= y for x, y in zip(after, after[1:], strict=False)):
        raise ValueError(f"after must rise from 0, a fresh model, got {list(after)}")
    n, num_probes = values.shape
    why = ""
    if n < MIN_SEEDS:
        why = f"{n} seed{'s' if n != 1 else ''}, {MIN_SEEDS} are needed"
    elif num_probes < 2:
        why = "no probe beside the fresh model"
    none = Onset(
        against=against,
        after=None,
        before=None,
        base=None,
        difference=None,
        interval=None,
        stays=False,
        why=why,
        margin=margin,
        last=after[-1],
    )
    return none if why else _first_worse(values, after, none, level)


def _first_worse(values: np.ndarray, after: Sequence[int], none: Onset, level: float) -> Onset:
    means, num_probes = values.mean(axis=0), values.shape[1]
    pairs = num_probes * (num_probes - 1) // 2
    num_tests = num_probes - 1 if none.against == "fresh" else pairs
    for j in range(1, num_probes):
        base = 0 if none.against == "fresh" else int(np.argmin(means[:j]))
        difference = float(means[j] - means[base])
        interval = t_interval(values[:, j] - values[:, base], 1 - (1 - level) / num_tests)
        if difference > none.margin and interval.low > 0:
            return Onset(
                against=none.against,
                after=after[j],
                before=after[j - 1],
                base=after[base],
                difference=difference,
                interval=interval,
                stays=bool((means[j:] - means[base] > none.margin).all()),
                why="",
                margin=none.margin,
                last=none.last,
            )
    return none
