"""launch/stream.py as a process: it is killed, stopped and started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.events import HANG

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "stream.tasks=40", "stream.samples_per_task=200", "panel.samples=20", "seeds=2",
    "methods.cbp={maturity: 10, rate: 0.01}", "learner.width=10",
)  # fmt: skip


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    words = ("launch/stream.py", "--run_dir", str(folder), "--set", *SMALL, *more)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True
    )


def wait_for_another(path: Path, before: bytes, run: subprocess.Popen[str]) -> bytes:
    """The next checkpoint of a run."""
    end = time.monotonic() + HANG
    while run.poll() is None and time.monotonic() < end:
        if path.exists() and (found := path.read_bytes()) != before:
            return found
        time.sleep(0.02)
    raise AssertionError(run.communicate(timeout=HANG))


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_ends_as_one_that_is_not(tmp_path):
    pytest.importorskip("sklearn")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = start(whole)
    out, err = run.communicate(timeout=HANG)
    assert run.returncode == 0, err
    assert "Online accuracy was best" in out and (whole / "stream.png").is_file()
    latest, seen = broken / "checkpoints" / "latest.json", b""
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 75)):
        run = start(broken)
        seen = wait_for_another(latest, seen, run)
        run.send_signal(number)
        _, err = run.communicate(timeout=HANG)
        assert run.returncode == code, err
    assert "SIGTERM: saved" in err
    run = start(broken)
    out, err = run.communicate(timeout=HANG)
    assert run.returncode == 0 and "Goes on" in out, err
    found = [json.loads((folder / "results.json").read_text()) for folder in (whole, broken)]
    for results in found:
        del results["seconds"]
    assert found[0] == found[1]
    run = start(broken, "optimizer.lr=1")
    _, err = run.communicate(timeout=HANG)
    assert run.returncode == 64 and "optimizer.lr: 0.03 -> 1.0" in err
