"""When a topology moves, how much of it, and how its density falls. No torch.

Cubic: GraNet (Liu et al. 2021, https://arxiv.org/abs/2106.10404) after Zhu & Gupta 2017. Sigmoid:
CHTss (Zhang et al. 2025, https://arxiv.org/abs/2501.19107) and its public code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.config import younger
from sparsecl.methods.work import Moment

M = TypeVar("M", bound=Moment)


class Clock(NamedTuple):
    """Where a run is in a stretch of it in which the graph moves; in optimizer steps."""

    step: int
    """Since the stretch began."""

    end: int
    """The last step of it at which the graph moves."""

    begin: int
    """Step of the run at which the stretch began."""

    span: int
    """Steps of the stretch if it had no end before the last."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """When the graph moves, and how much of it: options of all methods that move it."""

    every: Annotated[int, Ge(1)] = 100
    """Optimizer steps between rewires."""

    drop_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.3
    """Share of the live weights of a layer that is replaced."""

    schedule: Literal["cosine", "constant"] = younger("constant")
    """Of the drop fraction: down to 0 along a cosine until the graph stops, or the same."""

    during: Literal["all", "first", "after_switch"] = younger("all")
    """When the graph moves. all: the whole run; first: the first phase, so that later ones have a
    fixed topology found by training; after_switch: `switch_steps` at the start of every phase."""

    end: Annotated[float, Gt(0.0), Le(1.0)] = younger(1.0)
    """Share of the steps of the run (with during first: of the first phase) after which the graph
    stays as it is."""

    switch_steps: Annotated[int, Ge(1)] = younger(100)
    """With during after_switch: steps after which the graph stays as it is until the next phase."""

    def clock(self, at: Moment) -> Clock | None:
        """The stretch of this moment; None while the graph stays as it is."""
        now = self.stretch(at)
        return now if now is not None and now.step <= now.end else None

    def stretch(self, at: Moment) -> Clock | None:
        """The latest stretch that has begun, also after its end."""
        begin = at.step - at.phase_step
        if self.during == "all":
            step, begin, span = at.step, 0, at.total_steps
        elif self.during == "first" and at.phase > 0:
            return None
        else:
            step, span = at.phase_step, at.phase_steps
        if self.during == "after_switch":
            end = min(self.switch_steps, span)
        else:
            end = int(self.end * span)
        return Clock(step, end, begin, span)

    def is_due(self, at: Moment) -> bool:
        """The graph moves at this moment, after a step: every `every` steps of its stretch."""
        now = self.clock(at)
        return now is not None and now.step % self.every == 0

    def is_due_in_place(self, at: Moment, last: int) -> bool:
        """The graph moves in place of the step at hand: at once when a stretch begins, then `every`
        steps after the `last` time (0-based step; -1 = never)."""
        now = self.clock(at)
        return now is not None and (last < now.begin or at.step >= last + self.every)

    def fraction(self, at: Moment) -> float:
        """The drop fraction of this moment; 0 while the graph stays as it is."""
        now = self.clock(at)
        if now is None or self.schedule == "constant":
            return self.drop_fraction if now else 0.0
        return self.drop_fraction * cosine(now.step, now.end)


def ahead(at: M) -> M:
    """Where the run is once the step at hand is done."""
    return replace(at, step=at.step + 1, phase_step=at.phase_step + 1)


def cosine(step: int, end: int) -> float:
    """Factor of a drop fraction: 1 at step 0, 0 at `end` and after it."""
    return (1.0 + math.cos(math.pi * min(step / max(end, 1), 1.0))) / 2.0


def cubic(start: float, final: float, done: float) -> float:
    """Density once the share `done` in [0, 1] of the prunings is behind."""
    return final + (start - final) * (1.0 - min(done, 1.0)) ** 3


def sigmoid(start: float, final: float, done: float) -> float:
    """The same along a sigmoid that is scaled to meet both ends."""

    def plain(x: float) -> float:
        return 1.0 / (1.0 + math.exp(-12.0 * (x - 0.5)))

    shaped = (plain(min(done, 1.0)) - 0.5) / (plain(1.0) - plain(0.0)) + 0.5
    return start + (final - start) * shaped


def shrunk(start: Mapping[str, int], share: float) -> dict[str, int]:
    """Live weights of each matrix where all keep one share of those of the start; one stays."""
    return {name: max(1, round(share * num)) for name, num in start.items()}
