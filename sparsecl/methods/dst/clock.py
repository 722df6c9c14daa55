"""When a topology moves, how much of it, and how its density falls. No torch.

Cubic: GraNet (Liu et al. 2021, https://arxiv.org/abs/2106.10404) after Zhu & Gupta 2017. Sigmoid:
CHTss (Zhang et al. 2025, https://arxiv.org/abs/2501.19107) and its public code.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sparsecl.methods.work import Moment

if TYPE_CHECKING:
    from sparsecl.methods.dst.config import ChtsConfig, GranetConfig, RewireConfig

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


def clock(config: "RewireConfig", at: Moment) -> Clock | None:
    """The stretch of this moment; None while the graph stays as it is."""
    now = _stretch(config, at)
    return now if now is not None and now.step <= now.end else None


def _stretch(config: "RewireConfig", at: Moment) -> Clock | None:
    """The latest stretch that has begun, also after its end."""
    begin = at.step - at.phase_step
    if config.during == "all":
        step, begin, span = at.step, 0, at.total_steps
    elif config.during == "first" and at.phase > 0:
        return None
    else:
        step, span = at.phase_step, at.phase_steps
    if config.during == "after_switch":
        end = min(config.switch_steps, span)
    else:
        end = int(config.end * span)
    return Clock(step, end, begin, span)


def ahead(at: M) -> M:
    """Where the run is once the step at hand is done."""
    return replace(at, step=at.step + 1, phase_step=at.phase_step + 1)


def is_due(config: "RewireConfig", at: Moment) -> bool:
    """The graph moves at this moment, after a step: every `every` steps of its stretch."""
    now = clock(config, at)
    return now is not None and now.step % config.every == 0


def is_due_in_place(config: "RewireConfig", at: Moment, last: int) -> bool:
    """The graph moves in place of the step at hand: at once when a stretch begins, then `every`
    steps after the `last` time (0-based step; -1 = never)."""
    now = clock(config, at)
    return now is not None and (last < now.begin or at.step >= last + config.every)


def is_due_or_prunes(config: "ChtsConfig", at: Moment, last: int) -> bool:
    """The same, and pruning goes on where the graph does not move any more."""
    if clock(config, at) is None and sigmoid_share(config, at) is not None:
        return at.step >= last + config.every
    return is_due_in_place(config, at, last) or _has_surplus(config, at, last)


def _has_surplus(config: "ChtsConfig", at: Moment, last: int) -> bool:
    """The rewire that takes the surplus away was due and has not been: its step was discarded."""
    now = _stretch(config, at)
    if config.em_s is None or now is None or now.step <= now.end or last < now.begin:
        return False
    return last + config.every <= now.begin + now.end


def surplus(config: "ChtsConfig", at: Moment) -> float:
    """What lives beyond the target after a rewire at this moment, as a share of all cells."""
    now = clock(config, at)
    if config.em_s is None or now is None or now.step + config.every > now.end:
        return 0.0
    return config.em_s[0 if now.step <= 0.6 * now.end else 1]


def cosine(step: int, end: int) -> float:
    """Factor of a drop fraction: 1 at step 0, 0 at `end` and after it."""
    return (1.0 + math.cos(math.pi * min(step / max(end, 1), 1.0))) / 2.0


def fraction(config: "RewireConfig", at: Moment) -> float:
    """The drop fraction of this moment; 0 while the graph stays as it is."""
    now = clock(config, at)
    if now is None or config.schedule == "constant":
        return config.drop_fraction if now else 0.0
    return config.drop_fraction * cosine(now.step, now.end)


def cubic(start: float, final: float, done: float) -> float:
    """Density once the share `done` in [0, 1] of the prunings is behind."""
    return final + (start - final) * (1.0 - min(done, 1.0)) ** 3


def sigmoid(start: float, final: float, done: float) -> float:
    """The same along a sigmoid that is scaled to meet both ends."""

    def plain(x: float) -> float:
        return 1.0 / (1.0 + math.exp(-12.0 * (x - 0.5)))

    shaped = (plain(min(done, 1.0)) - 0.5) / (plain(1.0) - plain(0.0)) + 0.5
    return start + (final - start) * shaped


def cubic_share(config: "GranetConfig", at: Moment) -> float | None:
    """Share of the prunings that one now completes, at a moment at which the graph moves; None
    when there is none to do."""
    now = clock(config, at)
    assert now is not None
    total = int(config.prune_end * now.end) // config.every
    done = now.step // config.every
    last = total if config.exact_final else total - 1
    return done / total if done <= last else None


def sigmoid_share(config: "ChtsConfig", at: Moment) -> float | None:
    """The same where pruning has an end of its own, at any moment."""
    step, span = at.step, at.total_steps
    if config.during != "all":
        step, span = at.phase_step, at.phase_steps
    total = int(config.prune_end * span) // config.every
    done = step // config.every
    first = config.during == "all" or at.phase == 0
    if config.final_density is None or not first or done > total:
        return None
    return done / total if total else 1.0


def em_s_shares(config: "ChtsConfig", at: Moment, density: float) -> tuple[float, float]:
    """Of the live weights of a start at `density`: what a rewire at this moment removes down to,
    and what it grows to."""
    assert config.em_s is not None
    target = density - config.em_s[0]
    return target / density, (target + surplus(config, at)) / density


def shrunk(start: Mapping[str, int], share: float) -> dict[str, int]:
    """Live weights of each matrix where all keep one share of those of the start; one stays."""
    return {name: max(1, round(share * num)) for name, num in start.items()}
