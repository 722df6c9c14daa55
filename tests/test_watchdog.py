"""A process that gets nowhere is ended with its stacks; one that does, or was asleep, is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SCRIPT = """
import sys, time
from sparsecl import watchdog

class Board:
    def post(self, line): pass
    def lines(self):
        # Rank 1 writes on, rank 2 does not.
        return {0: "1 0 here", 1: f"{time.monotonic_ns()} 7 step 4", 2: "9 3 step 3"}

def work():
    %s

dog = watchdog.Watchdog(0.2, rank=0, board=Board(), poll=0.05)
dog.start()
for n in range(3):
    watchdog.beat(f"step {n}")
print("ready", flush=True)
work()
dog.close()
print("done", flush=True)
"""


def start(work: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT % work],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_hang_ends_with_place_peers_and_stacks():
    process = start("time.sleep(60)")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 76 and "done" not in out
    assert "rank 0: nothing has happened for" in err and "since: step 2" in err
    assert "rank 1: silent for 7 s, since: step 4" in err
    assert "rank 2: does not run (stopped or dead), since: step 3" in err
    assert "in work" in err


@pytest.mark.parametrize(
    "work",
    [
        "[(time.sleep(0.05), watchdog.beat('on')) for _ in range(30)]",
        # What is known to take long may.
        "\n    with watchdog.patient('save', 30):\n        time.sleep(1)",
    ],
)
def test_work_is_left_alone(work):
    process = start(work)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "") and "done" in out


def test_a_suspended_process_starts_counting_anew():
    process = start("[(time.sleep(0.05), watchdog.beat('on')) for _ in range(30)]")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(process.pid, signal.SIGCONT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def test_patience_grows_with_the_longest_step():
    from sparsecl.watchdog import GRACE, Watchdog

    dog = Watchdog(120.0)
    assert dog.allowed == GRACE * 120.0  # kernels may be compiled at first
    for _ in range(3):
        dog.beat("step")
    assert dog.allowed == 120.0
    dog._last -= 50.0
    dog.beat("a long step")
    assert dog.allowed == pytest.approx(GRACE * 50.0, rel=0.01)
