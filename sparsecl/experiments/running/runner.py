"""Runs a study: what is not done yet, a few at a time, until nothing can be started any more.

All state is in the study folder: a run is done when its folder says so. So the runner may be
stopped or killed at any time; started again it finds what is done and goes on with the rest, each
run from its last checkpoint. A run that fails is written down and does not stop the others.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sparsecl import signals
from sparsecl.errors import DataError, Preempted, UserError
from sparsecl.experiments.findings.collect import Status, status_of
from sparsecl.experiments.study.measures import learned_losses
from sparsecl.experiments.study.study_plan import (
    Run,
    StudyPlan,
    arm_config,
    failure_file,
    log_file,
    run_folder,
    slug,
)
from sparsecl.files import write_json
from sparsecl.metrics.results import read_ended
from sparsecl.opening import plain, read_plain

MAX_IDLE_STOPS = 3  # of one run in a row, at a request to stop that came before its first step
TICK = 0.2  # seconds between looks at the processes
MAX_REASON = 500
_BAR = re.compile(r"\d%\||\[\d+:\d\d[<,]")  # " 50%|####| 12/24 [00:03<00:03, 4it/s]"


class Process(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        ...

    def stop(self) -> None:
        """End it and wait until it has ended."""
        ...


class Place(Protocol):
    """Where runs are started: this machine, or a cluster."""

    slots: int
    """Runs at the same time."""

    def start(self, command: Sequence[str], *, log: Path, slot: int) -> Process:
        """Start a command; what it prints is appended to `log`."""
        ...


@dataclass
class Active:
    """A run in progress."""

    run: Run
    process: Process
    slot: int
    begun: float
    """time.monotonic()."""

    first_step: int
    """Optimizer steps that were done when it was started."""


class Runner:
    """One study folder and a place.

    Args:
        train: the command that does one run, up to its options.
        watch: called every tick with the runner, to show where things stand.
    """

    def __init__(
        self,
        folder: Path,
        plan: StudyPlan,
        place: Place,
        *,
        train: Sequence[str],
        watch: Callable[["Runner"], None],
    ) -> None:
        self.folder, self.plan, self.place = folder, plan, place
        self._train, self._watch = list(train), watch
        self.active: list[Active] = []
        self.status: dict[str, Status] = {}
        self.reasons: dict[str, str] = {}
        self.idle_stops: dict[str, int] = {}
        for run in plan.runs:
            # What failed before is tried again: whoever starts the study anew has a reason to.
            failure_file(folder, run).unlink(missing_ok=True)
            self.status[run.name], _ = status_of(folder, run)

    def run(self) -> bool:
        """Run all that can be run. Returns True if every run is done."""
        waiting = [run for run in self.plan.runs if self.status[run.name] != "done"]
        try:
            while waiting or self.active:
                waiting = self._start_ready(waiting + self._collect_ended())
                self._watch(self)
                time.sleep(TICK if self.active else 0.0)
        finally:
            for active in self.active:
                active.process.stop()
        return all(status == "done" for status in self.status.values())

    def _start_ready(self, waiting: list[Run]) -> list[Run]:
        """Fill the free slots; returns those that still wait."""
        left = []
        for run in waiting:
            blocker = self._blocker(run)
            if blocker == "failed":
                failed = next(n for n in run.waits_for if self.status[n] == "failed")
                self._fail(run, None, f"needs {failed}, which failed")
            elif blocker == "open" or len(self.active) >= self.place.slots:
                left.append(run)
            else:
                self._start(run)
        return left

    def _blocker(self, run: Run) -> str:
        """ "open" while what it needs is not done, "failed" if it never will be, "" if ready."""
        found = {self.status[name] for name in run.waits_for}
        return "failed" if "failed" in found else "open" if found - {"done"} else ""

    def _start(self, run: Run) -> None:
        used = {active.slot for active in self.active}
        slot = next(slot for slot in range(self.place.slots) if slot not in used)
        try:
            command = self.command(run)
            process = self.place.start(command, log=log_file(self.folder, run), slot=slot)
        except (UserError, OSError) as error:
            self._fail(run, None, str(error))
            return
        self.status[run.name] = "begun"
        begun_at = self.steps_done(run)
        self.active.append(Active(run, process, slot, time.monotonic(), begun_at))

    def steps_done(self, run: Run) -> int:
        """Optimizer steps of a run as far as it has written them; 0 if it has not begun."""
        place = run_folder(self.folder, run)
        if self.plan.subject == "stream":
            return int(self.plan.arm(run.arm).steps * share_done(place))
        return steps_done(place)

    def command(self, run: Run) -> list[str]:
        """The command of one run: what a user would type for it."""
        return [*self._train, *run_options(self.folder, self.plan, run)]

    def _collect_ended(self) -> list[Run]:
        """Take note of the runs that have ended; returns those that want to be started again."""
        again = []
        for active in list(self.active):
            code = active.process.poll()
            if code is None:
                continue
            self.active.remove(active)
            status, _ = status_of(self.folder, active.run)
            if code == 0 and status == "done":
                self.status[active.run.name] = "done"
            elif code == Preempted.exit_code and self._may_go_on(active):
                again.append(active.run)  # somebody has asked it to stop; it has saved its state
            else:
                self._fail(active.run, code, why_ended(code, log_file(self.folder, active.run)))
        return again

    def _may_go_on(self, active: Active) -> bool:
        """False for a run that is stopped again and again before it has done a step."""
        name = active.run.name
        moved = self.steps_done(active.run) > active.first_step
        self.idle_stops[name] = 0 if moved else self.idle_stops.get(name, 0) + 1
        return self.idle_stops[name] < MAX_IDLE_STOPS

    def _fail(self, run: Run, code: int | None, reason: str) -> None:
        self.status[run.name] = "failed"
        self.reasons[run.name] = reason
        value = {"exit_code": code, "reason": reason, "log": str(log_file(Path(), run))}
        write_json(failure_file(self.folder, run), value)


def run_options(folder: Path, plan: StudyPlan, run: Run) -> list[str]:
    """The options of launch/train.py, or of launch/stream.py, for one run.

    Raises:
        UserError: the run that it needs is not done, or its losses are not known.
    """
    if plan.subject == "stream":
        return [str(arm_config(folder, run.arm)), "--run_dir", str(run_folder(folder, run))]
    settings = [f"seed={run.seed}", f"name={slug(run)}"]
    if run.order:
        settings.append(f"phases.order=[{', '.join(plan.orders[run.order])}]")
    if run.needs is not None:
        settings.append(f"phases.until_loss={_losses(folder, plan, run.needs)}")
    settings += _taken(folder, plan, run)
    return [
        *("--ds_config", plan.ds_config),
        *("--config", str(arm_config(folder, run.arm))),
        *("--run_dir", str(run_folder(folder, run))),
        *("--set", *settings),
    ]


def _taken(folder: Path, plan: StudyPlan, run: Run) -> list[str]:
    """What a linked run takes, with whole paths: it is the same run from whatever folder."""
    by_name = {other.name: other for other in plan.runs}

    def place(name: str) -> Path:
        return run_folder(folder.resolve(), by_name[name])

    found: dict[str, Path] = {}
    if run.mask_of is not None:
        found["topology.path"] = place(run.mask_of)
    if run.since_of is not None:
        found["topology.ticket.since"] = place(run.since_of) / "initial" / "step_0"
    if run.weights_of is not None:
        step, weights = run.weights_step, place(run.weights_of)
        if step is not None:
            weights = weights / ("kept" if step else "initial") / f"step_{step}"
        found["init_from"] = weights
    return [f"{key}={json.dumps(str(path))}" for key, path in found.items()]


def _losses(folder: Path, plan: StudyPlan, name: str) -> list[float]:
    """Loss of each phase's own domain right after it, as phases.until_loss takes it."""
    needed = next(run for run in plan.runs if run.name == name)
    losses = learned_losses(read_ended(run_folder(folder, needed)))
    known = [loss for loss in losses if loss is not None]
    if not known or len(known) < len(losses):
        raise DataError(f"{name}: its losses after each phase are not all known")
    return known


def why_ended(code: int, log: Path) -> str:
    """Why a run that printed into `log` ended with `code`: the signal, or its own last words."""
    number = signals.name_of(code)
    if number == "SIGKILL":
        return "killed by SIGKILL, as the kernel does it when memory is short"
    return f"ended by {number}" if number else _last_words(log) or f"ended with {code}"


def _last_words(log: Path) -> str:
    """The error line, or else the last line that is not a progress bar."""
    try:
        lines = read_plain(log).decode("utf-8", "replace").splitlines()[-200:]
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip() and not _BAR.search(line)]
    # A line of an earlier attempt is no reason for the traceback that follows it.
    begins = [number for number, line in enumerate(lines) if line.startswith("Traceback (")]
    lines = lines[begins[-1] :] if begins else lines
    named = [line for line in lines if line.startswith("sparsecl: ")]
    chosen = named[-1].removeprefix("sparsecl: ") if named else (lines[-1] if lines else "")
    return chosen[:MAX_REASON]


def steps_done(run_dir: Path) -> int:
    """Optimizer steps of a run as far as it has written them; 0 if it has not begun."""
    try:
        with open(run_dir / "scalars.jsonl", "rb", opener=plain) as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return 0


def share_done(run_dir: Path) -> float:
    """Share of its tasks, of all networks, that a run on a stream has written; 0 before it has."""
    try:
        lines = read_plain(run_dir / "scalars.jsonl").splitlines()
        header = json.loads(lines[0])
        whole = header["tasks"] * len(header["seeds"])
        return sum(b'"kind": "task"' in line for line in lines) / whole
    except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
        return 0.0


def python_script(script: Path) -> list[str]:
    """A command that runs a script with this interpreter."""
    return [sys.executable, str(script)]
