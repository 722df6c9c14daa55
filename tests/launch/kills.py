"""SIGKILL at a chosen moment of a run, seen from outside through its folder."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from tests.launch.starter import TIMEOUT, Job


def wait_for(condition: Callable[[], bool], job: Job) -> None:
    """Poll until `condition` holds; fail if the job ends before."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert job.alive or condition(), f"ended before:\n{job.wait().err}"
        assert time.monotonic() < deadline, "the run does not get there"
        time.sleep(0.0005)


def last_step(folder: Path, since_ns: int = 0) -> int:
    """The last recorded step; 0 if nothing was recorded after `since_ns`."""
    path = folder / "scalars.jsonl"
    if not path.exists() or path.stat().st_mtime_ns <= since_ns:
        return 0
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be half a line
    return json.loads(lines[-1]).get("step", 0) if lines else 0


def unfinished_saves(folder: Path, since_ns: int) -> list[Path]:
    """Checkpoint folders without their name yet that were touched after `since_ns`."""
    found = []
    for path in folder.glob("checkpoints/step_*.tmp"):
        try:
            touched = path.stat().st_mtime_ns
        except FileNotFoundError:  # named in this moment
            continue
        if touched > since_ns:
            found.append(path)
    return found


def kill_at_step(job: Job, folder: Path, step: int, delay: float = 0.0) -> None:
    """Kill the job `delay` seconds after it has recorded `step` or a later one.

    What an earlier job has recorded does not count.
    """
    begin = job.started_ns
    wait_for(lambda: last_step(folder, begin) >= step, job)
    time.sleep(delay)
    job.kill()
    assert job.wait().code == -9


def kill_in_save(job: Job, folder: Path) -> bool:
    """Kill the job in its next save. Returns False if the save was done a moment earlier."""
    begin = job.started_ns
    wait_for(lambda: bool(unfinished_saves(folder, begin)), job)
    job.kill()
    assert job.wait().code == -9
    return bool(unfinished_saves(folder, begin))
