"""What share of a step goes to collectives: from a short trace of a few steps, not of all.

A collective is in flight from its call to its end: with gloo that is the span of its work, with
NCCL that of its kernel. Both hold the wait for ranks that come later, so a slow rank shows as
communication of the others. Of that, exposed is what no computation runs beside: no kernel on a
GPU, no operator of torch on a CPU. The rest is hidden, and costs nothing.

Cost of a sample, measured with two gloo ranks on a CPU: 30 to 45 ms to start, stop and read the
profiler, and 10 ms for the step under it, for 2,000 to 7,000 events. It changes no number.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch

from sparsecl import dist
from sparsecl.engine.observe.profile import new_profiler
from sparsecl.engine.speed_config import ProfileConfig
from sparsecl.errors import warn

FIRST = 3  # step of a phase in this process: before it kernels are compiled, buffers made
WINDOW = "sparsecl step"

Interval = tuple[int, int]
"""Begin and end, ns."""


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """What is covered by any of them: disjoint, in order, none empty."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        elif end > begin:
            joined.append((begin, end))
    return joined


def intersection(one: Sequence[Interval], other: Sequence[Interval]) -> list[Interval]:
    """What both cover; each must be as `union` returns it, and so is the result."""
    common, i, j = list[Interval](), 0, 0
    while i < len(one) and j < len(other):
        begin, end = max(one[i][0], other[j][0]), min(one[i][1], other[j][1])
        if begin < end:
            common.append((begin, end))
        if one[i][1] < other[j][1]:
            i += 1
        else:
            j += 1
    return common


def total(intervals: Iterable[Interval]) -> int:
    """Their summed length, ns."""
    return sum(end - begin for begin, end in intervals)


class Event(NamedTuple):
    """One entry of a trace."""

    name: str
    span: Interval
    on_device: bool = False
    is_label: bool = False
    """It names what others do, and is no work itself."""


@dataclass(frozen=True)
class Shares:
    """Of the wall time of a step, each in [0, 1]."""

    in_flight: float
    exposed: float
    """At most `in_flight`."""


def shares(events: Sequence[Event]) -> Shares | None:
    """Read one traced step; None if the trace does not hold its window."""
    window = union(event.span for event in events if event.name == WINDOW and not event.on_device)
    if not window:
        return None
    on_device = any(event.on_device for event in events)
    flying = union(event.span for event in events if _is_collective(event))
    computing = union(event.span for event in events if _is_computation(event, on_device))
    flying = intersection(flying, window)
    hidden = total(intersection(flying, computing))
    whole = total(window)
    return Shares(total(flying) / whole, (total(flying) - hidden) / whole)


def _is_collective(event: Event) -> bool:
    # "ncclDevKernel_..." is the kernel and "nccl:..." its label on the device, of the same span. On
    # the host that label ends when the kernel is queued, which says nothing.
    return event.name.startswith("nccl" if event.on_device else "gloo:")


def _is_computation(event: Event, on_device: bool) -> bool:
    if event.is_label or _is_collective(event) or event.on_device != on_device:
        return False
    # Copies use no arithmetic unit: what waits for one is as idle as what waits for a rank.
    return not event.name.startswith(("Mem", "mem")) if on_device else event.name[:6] == "aten::"


class Sampler:
    """Traces the third step of each phase, and then one in every `every`. All methods are local.

    Which steps follows from counts that are equal on all ranks, so all ranks are slowed at once.
    """

    def __init__(self, every: int, profile: ProfileConfig | None) -> None:
        """Args:
        every: steps from one sample to the next; 0 = none. A lone process takes none.
        profile: steps that the user has traced; a second profiler would end the first.
        """
        self._every = every if dist.world_size() > 1 else 0
        self._profile = profile
        self._steps = 0
        self.found: list[Shares] = []
        """What the samples since the last `take` have shown."""

    def begin_phase(self) -> None:
        """Count from the first step again."""
        self._steps = 0

    def take(self) -> tuple[float, float]:
        """Mean (in flight, exposed) of the samples since the last call; NaN if there was none."""
        found, self.found = self.found, []
        if not found:
            return float("nan"), float("nan")
        return fmean(one.in_flight for one in found), fmean(one.exposed for one in found)

    def is_due(self, number: int) -> bool:
        """True if the step is to be traced.

        Args:
            number: of the step in the whole run, from 1.
        """
        profile = self._profile
        taken = profile is not None and 0 <= number - profile.first < profile.steps
        since = self._steps - FIRST
        return self._every > 0 and since >= 0 and since % self._every == 0 and not taken

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[list[float]]:
        """Around one step. Yields a list that holds afterwards the seconds that looking took."""
        cost: list[float] = []
        self._steps += 1
        busy = torch.autograd._profiler_enabled()  # pyright: ignore[reportPrivateImportUsage]
        due = self.is_due(number) and not busy
        profiler = self._start(cost) if due else None
        if profiler is None:
            yield cost
            return
        try:
            with torch.profiler.record_function(WINDOW):
                yield cost
                if torch.cuda.is_available():
                    torch.cuda.synchronize()  # the step is over when its kernels are
        finally:
            begin = time.perf_counter()
            profiler.stop()
        found = shares(_events(profiler))
        self.found += [found] if found is not None else []
        cost.append(time.perf_counter() - begin)

    def _start(self, cost: list[float]) -> Any:
        """A running profiler; None if there cannot be one, and then never again."""
        begin = time.perf_counter()
        profiler = new_profiler()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels of the step before are not of this one
        try:
            profiler.start()
        except RuntimeError as error:  # as where another tool holds the GPU's counters
            self._every = 0
            warn(f"communication is not measured: {str(error).splitlines()[0]}")
            return None
        cost.append(time.perf_counter() - begin)
        return profiler


def _events(profiler: Any) -> list[Event]:
    """The trace, without the tree of operators that `profiler.events()` takes long to build."""
    return [
        Event(
            event.name(),
            (event.start_ns(), event.start_ns() + event.duration_ns()),
            event.device_type() != torch.profiler.DeviceType.CPU,
            event.is_user_annotation(),
        )
        for event in profiler.profiler.kineto_results.events()
    ]
