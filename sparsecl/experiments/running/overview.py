"""Where a study stands, while it runs: redrawn on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import TextIO

from sparsecl.experiments.running.runner import Runner
from sparsecl.experiments.study.study_plan import Run

QUIET = 30.0  # seconds between lines where nothing can be redrawn
REDRAW = 1.0
BAR = 20


class Overview:
    """Shows a runner's progress; given to it as `watch`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._begun = time.monotonic()
        self._shown = -1e9
        self._height = 0
        self._first_steps: float | None = None
        self._ended: set[str] = set()

    def __call__(self, runner: Runner) -> None:
        """Look at the runner; print if it is time or something has ended."""
        fresh = self._news(runner)
        due = time.monotonic() - self._shown >= (REDRAW if self._tty else QUIET)
        if fresh or due:
            self._shown = time.monotonic()
            self._show(fresh, self._state(runner))

    def _news(self, runner: Runner) -> list[str]:
        """A line for each run that has ended since the last look."""
        lines = []
        for run in runner.plan.runs:
            status = runner.status[run.name]
            if run.name in self._ended or status not in ("done", "failed"):
                continue
            self._ended.add(run.name)
            if self._first_steps is not None:
                why = f": {runner.reasons[run.name]}" if run.name in runner.reasons else ""
                lines.append(f"  {status:<7} {run.name}{why}")
        return lines

    def _state(self, runner: Runner) -> list[str]:
        plan = runner.plan
        planned = {arm.name: arm.steps for arm in plan.arms}
        going = {active.run.name for active in runner.active}
        steps = {run.name: self._steps(runner, run, planned[run.arm], going) for run in plan.runs}
        done, total = sum(steps.values()), sum(planned[run.arm] for run in plan.runs)
        if self._first_steps is None:
            self._first_steps = done
        counts = [runner.status[run.name] for run in plan.runs]
        words = f"{counts.count('done')} of {len(counts)} runs done"
        if counts.count("failed"):
            words += f", {counts.count('failed')} failed"
        head = f"{plan.name} ({plan.scale}): {words}, {bar(done, total)}, {self._eta(done, total)}"
        lines = [
            f"    {active.run.name:<40} step {steps[active.run.name]:>6} of "
            f"{planned[active.run.arm]:<6} {clock(time.monotonic() - active.begun)}"
            for active in runner.active
        ]
        return [head, *lines] if self._tty else [head]

    def _steps(self, runner: Runner, run: Run, planned: int, going: set[str]) -> int:
        """Steps of one run that count as done; what has failed will not be waited for."""
        if runner.status[run.name] in ("done", "failed"):
            return planned
        return runner.steps_done(run) if run.name in going else 0

    def _eta(self, done: float, total: float) -> str:
        spent = time.monotonic() - self._begun
        fresh = done - (self._first_steps or 0)
        if done >= total:
            return f"{clock(spent)} in all"
        return f"eta {clock((total - done) * spent / fresh)}" if fresh > 0 else "eta unknown"

    def _show(self, news: list[str], state: list[str]) -> None:
        if self._tty and self._height:
            self._stream.write(f"\x1b[{self._height}F\x1b[J")
        self._stream.write("".join(f"{line}\n" for line in [*news, *state]))
        self._stream.flush()
        self._height = len(state) if self._tty else 0


def bar(done: float, total: float) -> str:
    """A bar of fixed width and the share in percent."""
    share = done / total if total else 1.0
    filled = round(BAR * share)
    return f"[{'#' * filled}{'.' * (BAR - filled)}] {share:.0%}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
