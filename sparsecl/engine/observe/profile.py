"""A trace of some steps: what ran when, on the host and on the device, and what took longest.

The trace lies in the run's TensorBoard folder, as TensorBoard's profiler page and chrome://tracing
(or ui.perfetto.dev) read it. While it is taken steps are slower; it is written once, at its end.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sparsecl import watchdog
from sparsecl.engine.observe.journal import Journal
from sparsecl.engine.speed_config import ProfileConfig
from sparsecl.errors import reason
from sparsecl.opening import make_folder, plain

NUM_ROWS = 15  # operators in the table
NAME_WIDTH = 48
WRITE_SECONDS = 600.0  # what a trace may take to be written


class StepProfile:
    """Traces the steps that the config names, on rank 0."""

    def __init__(self, config: ProfileConfig | None, journal: Journal, folder: Path) -> None:
        """Args:
        config: None = nothing is traced.
        folder: where TensorBoard looks.
        """
        active = config is not None and journal.log is not None
        self._config = config if active else None
        self._journal, self._folder = journal, folder
        self._profiler: Any = None

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step. Local.

        Args:
            number: of the step in the whole run, from 1.
        """
        config = self._config
        if config is None:
            yield
            return
        if number == config.first:
            self._profiler = new_profiler(record_shapes=True)
            self._profiler.start()
        try:
            with torch.profiler.record_function(f"step {number}"):
                yield
        except BaseException:
            self._stop()
            raise
        if self._profiler is not None and number == config.first + config.steps - 1:
            self._write(self._stop())

    def _stop(self) -> Any:
        """End the trace, if there is one. Returns the profiler."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
        return profiler

    def _write(self, profiler: Any) -> None:
        """The trace into its file and the table into the log."""
        config = self._config
        assert config is not None
        path = self._folder / f"steps_{config.first}.pt.trace.json"
        with watchdog.patient("writing a trace", WRITE_SECONDS):
            self._journal.say(operator_table(profiler, steps=config.steps))
            try:
                make_folder(self._folder)
                os.close(plain(path, os.O_WRONLY | os.O_CREAT))  # torch would follow a link
                profiler.export_chrome_trace(str(path))
                self._journal.say(f"  trace: {path}")
            # A picture that cannot be written does not end a run; torch has no kind for it.
            except (OSError, RuntimeError) as error:
                self._journal.say(f"  warning: {path}: no trace written ({reason(error)})")


def operator_table(profiler: Any, *, steps: int) -> str:
    """The operators that took longest by themselves: on the device, or on a CPU without one."""
    device = torch.cuda.is_available()
    field = "self_device_time_total" if device else "self_cpu_time_total"
    # Annotations, such as that of the step, span operators and would count them again.
    events = [
        event
        for event in profiler.key_averages()
        if getattr(event, field) > 0 and not event.is_user_annotation
    ]
    events.sort(key=lambda event: getattr(event, field), reverse=True)
    total = sum(getattr(event, field) for event in events)
    place = "device" if device else "CPU"
    lines = [
        f"  profile of {steps} steps: {total / 1e3 / steps:.2f} ms of {place} time in each",
        f"  {'operator':<{NAME_WIDTH}}{'ms / step':>11}{'share':>8}{'calls / step':>14}",
    ]
    for event in events[:NUM_ROWS]:
        own = getattr(event, field)
        lines.append(
            f"  {event.key[: NAME_WIDTH - 1]:<{NAME_WIDTH}}{own / 1e3 / steps:>11.3f}"
            f"{own / total:>8.1%}{event.count / steps:>14.1f}"
        )
    return "\n".join(lines)


def new_profiler(*, record_shapes: bool = False) -> Any:
    """A profiler of the host and, where there is one, the device; not started."""
    # Kineto reports its starts and stops on stderr; at its first use it reads what it may say.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities, record_shapes=record_shapes)
