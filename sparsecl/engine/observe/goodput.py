"""Where the wall time of a run went, over all its starts: attempts.jsonl in the run folder.

Goodput = useful step seconds / wall seconds since the first start. Useful is what stands in the
last checkpoint (engine/observe/clock.py): a step that was lost to a kill and taken again counts
once, so lost work, starts, evaluations, checkpoints and the time between attempts all count
against it. A queue is not the fault of the trainer, so there is a second figure without the time
between attempts.

The file has a line for each start, and lines that say how far the attempt is by now, after each
evaluation and each checkpoint and once a minute; it is only ever appended to. What a killed attempt
did after its last line counts as time between attempts. Inside an attempt time is that of the
monotonic clock. Only from one attempt to the next the clock of the machine is asked; where it was
set back, the time between them counts as none.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sparsecl.errors import UserError, warn
from sparsecl.files import writing
from sparsecl.log import RecordFile
from sparsecl.opening import read_plain
from sparsecl.seal import Extent, sealed_lines

ATTEMPTS = "attempts.jsonl"
MAX_SILENCE = 60.0  # seconds from one line to the next, where steps are logged


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of one attempt up to some moment; no two fields share any."""

    startup: float = 0.0
    """From the start of the process to the first evaluation or step."""

    steps: float = 0.0
    """All steps, those that were lost later included."""

    evaluation: float = 0.0
    checkpoint: float = 0.0
    """How long training waited for checkpoints; one that is written beside it costs less."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the run, as far as the file knows it."""

    begun: float
    """Unix seconds."""

    seconds: float = 0.0
    """From there to the last line."""

    spent: Spent = Spent()

    @property
    def end(self) -> float:
        """Unix seconds."""
        return self.begun + self.seconds


def breakdown(attempts: Sequence[Attempt], *, useful: float) -> dict[str, Any]:
    """Goodput and the parts of the wall time; the parts sum to `wall_seconds`, none is negative.

    Args:
        attempts: in order.
        useful: step seconds that count, over all attempts.
    """
    steps = sum(attempt.spent.steps for attempt in attempts)
    between = sum(max(0.0, after.begun - before.end) for before, after in pairwise(attempts))
    # A kill right after a save: the checkpoint knows of steps that the file does not.
    unknown = min(max(0.0, useful - steps), between)
    training = min(useful, steps + unknown)
    parts = {
        "startup": sum(attempt.spent.startup for attempt in attempts),
        "training": training,
        "evaluation": sum(attempt.spent.evaluation for attempt in attempts),
        "checkpoint": sum(attempt.spent.checkpoint for attempt in attempts),
        "lost": max(0.0, steps + unknown - training),
        "other": sum(_rest(attempt) for attempt in attempts),
        "between_attempts": between - unknown,
    }
    wall = sum(parts.values())
    return {
        "goodput": _share(training, wall),
        "goodput_of_attempts": _share(training, wall - parts["between_attempts"]),
        "attempts": len(attempts),
        "wall_seconds": wall,
        "parts": parts,
    }


def _rest(attempt: Attempt) -> float:
    return max(0.0, attempt.seconds - sum(asdict(attempt.spent).values()))


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0.0 else None


def read_attempts(content: bytes) -> list[Attempt]:
    """The attempts of a file; a line that is torn or odd is passed over."""
    attempts: list[Attempt] = []
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict):
            continue
        if record.get("event") == "start" and _is_time(record.get("time")):
            attempts.append(Attempt(begun=float(record["time"])))
        elif record.get("event") == "mark" and attempts and _is_time(record.get("seconds")):
            names = [field.name for field in fields(Spent)]
            known = {name: float(record[name]) for name in names if _is_time(record.get(name))}
            seconds = float(record["seconds"])
            attempts[-1] = replace(attempts[-1], seconds=seconds, spent=Spent(**known))
    return attempts


def _is_time(value: Any) -> bool:
    return isinstance(value, float | int) and 0.0 <= value < 1e12


class Attempts:
    """The attempts of one run: those before, and this one. Rank 0 only; all methods are local.

    Nothing that a disk does here stops a run: there is one warning, and the figures stay right.
    """

    def __init__(self, folder: Path) -> None:
        """Begin an attempt, at the moment at which this process started.

        Args:
            folder: the run folder; it exists.
        """
        path = folder / ATTEMPTS
        content, self._file = _open(path)
        self.earlier = read_attempts(content)
        self.is_whole = _is_whole(content)
        if not self.is_whole:
            warn(f"{path}: is not as it was written; goodput is not known for this run")
        # A process may hold two attempts, one after the other: no second belongs to both.
        free = time.time() - self.earlier[-1].end if self.earlier else math.inf
        age = max(0.0, min(process_seconds(), free))
        self._begun = time.monotonic() - age
        self._wall_begun = time.time() - age
        self._written, self._warned = -math.inf, self._file is None
        self._append({"event": "start", "time": self._wall_begun})

    @property
    def seconds(self) -> float:
        """Since this attempt began."""
        return time.monotonic() - self._begun

    def mark(self, spent: Spent, *, at_most_every: float = 0.0) -> None:
        """Write how far this attempt is, unless a line was written less than so many seconds ago.

        Args:
            spent: of this attempt, up to now.
        """
        seconds = self.seconds
        if seconds - self._written >= at_most_every:
            self._written = seconds
            self._append({"event": "mark", "seconds": seconds, **asdict(spent)})

    def breakdown(self, spent: Spent, *, useful: float) -> dict[str, Any]:
        """See the function of that name; this attempt is counted up to now. {} if the file has
        been changed."""
        if not self.is_whole:
            return {}
        now = Attempt(begun=self._wall_begun, seconds=self.seconds, spent=spent)
        return breakdown([*self.earlier, now], useful=useful)

    def close(self) -> None:
        """Let go of the file; `mark` must not be called again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        self._file.append(json.dumps(record).encode() + b"\n", sealed=True)
        if self._file.problem is not None and not self._warned:
            self._warned = True
            warn(f"{self._file.path}: cannot be written ({self._file.problem}); the run goes on")


def _is_whole(content: bytes) -> bool:
    """Nothing has changed since it was written. Earlier versions sealed no line."""
    try:
        return len({sealed for _, sealed in sealed_lines(content)}) < 2
    except ValueError:
        return False


def _open(path: Path) -> tuple[bytes, RecordFile | None]:
    """The whole lines of the file, and the file behind them; a torn line is cut off."""
    content = b""
    try:
        with writing(path), contextlib.suppress(FileNotFoundError):
            content = read_plain(path)
            content = content[: content.rfind(b"\n") + 1]
        return content, RecordFile(path, keep=Extent.of(content))
    except UserError as error:
        warn(f"{error}; goodput will not know of this attempt")
        return content, None


def process_seconds() -> float:
    """How long this process has been running, where Linux tells it; 0 elsewhere."""
    try:
        stat = Path("/proc/self/stat").read_bytes()
        # Field 22; the name of the program, field 2, stands in brackets and may hold spaces.
        ticks = int(stat.rpartition(b")")[2].split()[19])
        begun = ticks / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - begun)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
