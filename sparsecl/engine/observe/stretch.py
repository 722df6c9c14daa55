"""Some steps in a row: how long they took on this rank, and what the reports of all ranks say.

Local and without torch.distributed; engine/observe/monitor.py brings the reports together.
"""

import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple, Protocol

import torch


class Loader(Protocol):
    """What gives the rows of a step."""

    wait_seconds: float
    """What the loop has waited for rows so far, in this process."""


class Report(NamedTuple):
    """What one rank tells the others about a stretch; numbers only, as a tensor carries them."""

    seconds: float
    """Of all its steps."""

    wait_seconds: float
    """Of these, waiting for rows of the loader."""

    memory: float
    """Peak bytes since the process began: of tensors on a GPU, of the whole process on a CPU."""

    reserved: float
    """Peak bytes that torch held on a GPU; 0 on a CPU."""

    in_flight: float
    """Share of a sampled step in which a collective was on its way; NaN if none was sampled."""

    exposed: float
    """The part of it that no computation hid."""


class StepClock:
    """Times the steps of this rank: each by itself, and those since `take` together.

    The first step is not part of any stretch: it compiles kernels and makes buffers.
    """

    def __init__(self, loader: Loader) -> None:
        """Args:
        loader: whose waiting is counted along.
        """
        self.clock = time.monotonic
        self._loader = loader
        self._warm = False
        self._mark = self._step = 0.0
        self._forget()

    def begin(self) -> None:
        """A step begins."""
        self._mark, self._step = self.clock(), 0.0
        self._steps += 1

    def leave_out(self, seconds: float) -> None:
        """So much of the time since `begin` was no work of the step."""
        self._mark += seconds

    def end(self) -> float:
        """The step is over. Returns its seconds."""
        self._lap()
        if not self._warm:
            self._warm = True
            self._forget()
        return self._step

    def take(self) -> tuple[int, float, float]:
        """(steps, seconds, seconds of waiting for rows) since the last call, inside a step.

        That step counts as done: what it still does goes to the next stretch. On a GPU the seconds
        are right if the device has been waited for.
        """
        self._lap()
        found = self._steps, self._seconds, self._loader.wait_seconds - self._wait_seen
        self._forget()
        return found

    def _lap(self) -> None:
        now = self.clock()
        self._step += now - self._mark
        self._seconds += now - self._mark
        self._mark = now

    def _forget(self) -> None:
        self._steps, self._seconds = 0, 0.0
        self._wait_seen = self._loader.wait_seconds


class Stretch:
    """The reports of all ranks about the same steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.ranks: list[Report] = []
        """One for each rank, of all steps together; without samples."""

        self._samples: list[tuple[float, float]] = []

    def add(self, steps: int, reports: Sequence[Report]) -> None:
        """The next `steps` steps, as all ranks saw them, in rank order."""
        before = self.ranks or [Report(0.0, 0.0, 0.0, 0.0, math.nan, math.nan)] * len(reports)
        self.ranks = [_together(*pair) for pair in zip(before, reports, strict=True)]
        self.steps += steps
        # Ranks wait for each other in collectives, so only the mean over them says anything.
        known = [(one.in_flight, one.exposed) for one in reports if math.isfinite(one.in_flight)]
        if known:
            in_flight, exposed = zip(*known, strict=True)
            self._samples.append((fmean(in_flight), fmean(exposed)))

    def tokens_per_second(self, step_tokens: int) -> float:
        """Of all ranks together.

        Args:
            step_tokens: new tokens of a step, over all ranks.
        """
        slowest = max((rank.seconds for rank in self.ranks), default=0.0)
        return step_tokens * self.steps / max(slowest, 1e-9)

    def figures(self) -> dict[str, Any]:
        """Under the names of results.json; None = not sampled. Nothing if there were no steps."""
        if not self.steps:
            return {}
        times = [rank.seconds / self.steps for rank in self.ranks]
        in_flight, exposed = zip(*self._samples, strict=True) if self._samples else ((), ())
        return {
            "ranks": len(self.ranks),
            "step_seconds": {"min": min(times), "median": median(times), "max": max(times)},
            "loader_wait_share": max(
                rank.wait_seconds / max(rank.seconds, 1e-9) for rank in self.ranks
            ),
            "communication_share": fmean(in_flight) if in_flight else None,
            "exposed_communication_share": fmean(exposed) if exposed else None,
            "peak_memory_bytes": int(max(rank.memory for rank in self.ranks)),
        }


def _together(before: Report, after: Report) -> Report:
    """One rank's reports about two stretches as one; samples are kept elsewhere."""
    return Report(
        before.seconds + after.seconds,
        before.wait_seconds + after.wait_seconds,
        max(before.memory, after.memory),
        max(before.reserved, after.reserved),
        math.nan,
        math.nan,
    )


def peak_memory() -> tuple[int, int]:
    """(peak, reserved) bytes of this rank since its process began; see Report."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024, 0
    except (OSError, StopIteration, ValueError):
        # A process that was made by another one inherits its parent's peak here.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024, 0
