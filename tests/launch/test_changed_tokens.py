"""Token files that somebody writes to while a run reads them."""

import os
import signal
from pathlib import Path

import pytest

from sparsecl.errors import DataError
from tests.events import wait_for
from tests.launch.starter import Starter


def overwrite(path: Path) -> None:
    """Other tokens of the same vocabulary, the same size, and the time set back."""
    before, content = path.stat(), path.read_bytes()
    with open(path, "r+b") as file:
        file.write(content[2:] + content[:2])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.fault("H3")
@pytest.mark.parametrize("change", [overwrite, cut])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_ends_at_the_next_border_and_saves_nothing(starter: Starter, change, world_size):
    starter.cache = starter.folder / "cache"
    run_dir = starter.folder / "run"
    config = starter.config(
        phases={"steps": 2}, eval={"every": 0, "tokens": 160}, checkpoint={"every": 0}
    )
    # All ranks stop before the second step of the first phase until they are told to go on.
    arguments = starter.arguments(
        "--run_dir", str(run_dir), "--inject", "stop@step:2", config=config
    )
    jobs = starter.start_ranks(arguments, world_size)
    for job in jobs:
        status = Path(f"/proc/{job.process.pid}/status")
        wait_for(
            lambda status=status: "T (stopped)" in status.read_text(),
            "the stop",
            alive=lambda job=job: job.alive,
        )
    change(next(starter.cache.glob("tokens/b-*")) / "validation.tokens")
    for job in jobs:
        os.kill(job.process.pid, signal.SIGCONT)
    done = [job.wait() for job in jobs]
    assert [one.code for one in done] == [DataError.exit_code] * world_size
    last = done[0].err.splitlines()[-1]
    assert last.startswith("sparsecl: ") and "validation.tokens: " in last and "delete" in last
    assert not any("Traceback" in one.err for one in done)
    assert not list(run_dir.glob("checkpoints/step_*"))
    rows = [line for line in open(run_dir / "scalars.jsonl") if '"kind": "eval"' in line]
    assert len(rows) == 2 and all('"at": "start"' in row for row in rows)
