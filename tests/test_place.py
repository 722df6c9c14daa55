"""The place that a launcher gives, and what can be seen of other ranks and of the launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecl import place
from sparsecl.errors import UserError
from tests.events import HANG

ROOT = Path(__file__).resolve().parents[1]
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
WHOLE |= {"MASTER_ADDR": "host", "MASTER_PORT": "29500"}


@pytest.mark.fault("X8")
@pytest.mark.parametrize(
    "variables",
    [
        {},
        WHOLE,
        {"RANK": "0", "WORLD_SIZE": "1"},
        # The shell of an allocation of four tasks, and that of one whose shell is a step.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
        {"SLURM_STEP_ID": "4294967290", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"},
        {**WHOLE, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
        {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_places_that_are_right(variables):
    place.check(variables)


def test_which_gpu_is_asked_for_only_where_there_is_one():
    without = {name: value for name, value in WHOLE.items() if name != "LOCAL_RANK"}
    place.check(without)
    assert (place.local_rank(WHOLE), place.local_rank({})) == (1, 0)
    with pytest.raises(UserError, match="LOCAL_RANK is not set, but RANK=1 and WORLD_SIZE=2"):
        place.local_rank(without)


@pytest.mark.fault("X8", "X9")
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "5", "WORLD_SIZE": "1"}, "RANK=5: must be below WORLD_SIZE=1"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1: must be a number from 0"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x: must be a number"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "RANK=: must be a number"),
        ({"RANK": "1"}, "WORLD_SIZE is not set, but RANK=1"),
        ({"WORLD_SIZE": "2"}, "RANK is not set, but WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a number from 1"),
        ({"RANK": "0", "WORLD_SIZE": "1e3"}, "WORLD_SIZE=1e3: must be a number"),
        ({**WHOLE, "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE=9+: must be a number"),
        ({**WHOLE, "MASTER_PORT": "abc"}, "MASTER_PORT=abc: must be a number from 1 to 65535"),
        ({**WHOLE, "MASTER_PORT": "65536"}, "MASTER_PORT=65536: must be"),
        ({**WHOLE, "LOCAL_SIZE": "0"}, "LOCAL_SIZE=0: must be a number from 1"),
        *(({k: v for k, v in WHOLE.items() if k != name}, f"{name} is not set")
          for name in ("MASTER_ADDR", "MASTER_PORT")),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}, "SLURM_NTASKS=2 without RANK"),
        ({"SLURM_STEPID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2 without"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2 without RANK"),
        ({"PMI_SIZE": "8"}, "PMI_SIZE=8 without RANK"),
    ],
)  # fmt: skip
def test_places_that_are_wrong(variables, message):
    with pytest.raises(UserError, match=message) as found:
        place.check(variables)
    # Both ways to start, in each line.
    assert "deepspeed launch/train.py" in str(found.value)
    assert "bash slurm/train.sbatch -- " in str(found.value)


@pytest.mark.fault("X8", "X9")
@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "5", "WORLD_SIZE": "1"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"},
    ],
)
def test_every_process_says_it_before_torch_is_imported(tmp_path, variables):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    words = [sys.executable, str(ROOT / "launch" / "train.py")]
    done = subprocess.run(
        [*words, "--ds_config", str(ROOT / "ds_configs" / "zero2.json")],
        env={**os.environ, "PYTHONPATH": str(tmp_path), **variables},
        cwd=tmp_path, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 64, done.stderr
    assert done.stderr.startswith("sparsecl: ") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["torch.py"]


# ---- who is there ------------------------------------------------------------------------------


@pytest.fixture
def processes():
    """Starts processes that wait until their stdin is closed."""
    started = []

    def start(code="", **variables):
        process = subprocess.Popen(
            [sys.executable, "-c", code or "print(flush=True); input()"],
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.fault("X4")
def test_a_rank_that_was_seen_and_is_gone(processes):
    mine = {**WHOLE, "RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": str(os.getpid())}
    seen = place.Siblings(mine)
    assert seen.look() == []  # nobody has begun, so nobody is gone
    first, second = (processes(**{**mine, "RANK": rank}) for rank in ("1", "2"))
    helper = processes(**{**mine, "RANK": "1"})  # what a rank has started has its variables, too
    stranger = processes(**{**mine, "RANK": "3", "MASTER_PORT": "1"})
    assert seen.look() == []
    helper.kill()
    stranger.kill()
    helper.wait()
    assert seen.look() == []
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody counted it
    assert seen.look() == [1]
    second.kill()
    second.wait()
    assert seen.look() == [1, 2]


@pytest.mark.fault("X4")
def test_where_nothing_can_be_seen_nobody_is_gone(processes, monkeypatch, tmp_path):
    mine = {**WHOLE, "RANK": "0", "MASTER_PORT": str(os.getpid())}
    seen = place.Siblings(mine)
    other = processes(**{**mine, "RANK": "1"})
    assert seen.look() == []
    other.kill()
    other.wait()
    with monkeypatch.context() as patch:
        patch.setattr(place, "PROC", tmp_path / "none")
        assert seen.look() == []
    assert seen.look() == [1]


LAUNCHER = "import subprocess, sys; subprocess.call([sys.executable, '-c', *sys.argv[1:]])"

RANK = """
import os, sys, time
from sparsecl import place
place.begin()
print(os.getppid(), place.is_orphan(), flush=True)
end = time.monotonic() + 100
while not place.is_orphan() and time.monotonic() < end:
    time.sleep(0.01)
os.write(2, b"orphan" if place.is_orphan() else b"waited in vain")
"""


@pytest.mark.fault("X12")
@pytest.mark.parametrize("killed", ["deepspeed", "its process on this machine"])
def test_a_rank_notices_that_deepspeed_is_gone(killed):
    """`deepspeed` starts a process, which starts the ranks."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, LAUNCHER, RANK],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CROSS_SIZE": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    middle, orphan = process.stdout.readline().split()
    assert orphan == "False"
    os.kill(process.pid if killed == "deepspeed" else int(middle), 9)
    assert process.stderr.read(6) == "orphan"
    process.kill()
    process.communicate()
