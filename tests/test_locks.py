"""Folders with one owner."""

import json
import os
import signal
import stat
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sparsecl import locks
from sparsecl.errors import CannotCreateError
from sparsecl.locks import LOCK, Owner, lock_folder, this_process

ELSEWHERE = {"host": "elsewhere", "boot": "another-boot"}


def leave(folder: Path, owner: Owner | str) -> Path:
    """A lock file whose owner has not closed it."""
    text = owner if isinstance(owner, str) else json.dumps(asdict(owner))
    (folder / LOCK).write_text(text)
    return folder


def refusal(folder: Path) -> str:
    before = (folder / LOCK).read_bytes() if (folder / LOCK).is_file() else None
    with pytest.raises(CannotCreateError) as caught:
        lock_folder(folder, "--run_dir")
    assert caught.value.exit_code == 73
    assert str(caught.value).isprintable() and len(str(caught.value)) < 800 + 2 * len(str(folder))
    if before is not None:
        assert (folder / LOCK).read_bytes() == before
    return str(caught.value)


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Puts a squeue on PATH that prints and exits as told; it notes how it was called."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)

    def install(out: str = "", error: str = "", code: int = 0) -> Path:
        script = place / "squeue"
        calls = place / "calls"
        lines = ("#!/bin/sh", f"echo \"$@\" >> '{calls}'", f"printf '{out}'")
        script.write_text("\n".join((*lines, f"printf '{error}' >&2", f"exit {code}")))
        script.chmod(0o755)
        return calls

    return install


# ---- one owner on one host ---------------------------------------------------------------------


@pytest.mark.fault("J1")
def test_a_lock_names_its_owner_and_is_emptied_by_close(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    lock = lock_folder(tmp_path / "run", "--run_dir")
    line = (tmp_path / "run" / LOCK).read_text()
    found = json.loads(line)
    assert line.count("\n") == 1 and found["pid"] == os.getpid()
    assert (found["job"], found["restarts"]) == ("77", "2")
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert 0 < int(found["start"]) <= uptime
    assert f"in use by process {os.getpid()} on" in refusal(tmp_path / "run")
    lock.close()
    lock.close()
    assert (tmp_path / "run" / LOCK).read_text() == ""
    lock_folder(tmp_path / "run", "--run_dir").close()


@pytest.mark.fault("J2")
def test_a_killed_owner_is_followed_at_once(tmp_path):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        lock_folder(tmp_path, "--run_dir")
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    try:
        assert f"in use by process {child} on" in refusal(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == child
    with lock_folder(tmp_path, "--run_dir"):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.fault("J2")
@pytest.mark.parametrize(
    "change",
    [
        {"boot": "before the reboot"},
        {"start": "1"},  # the pid came again
        {"pid": 2**22 + 1},  # no such process
        {"host": "another name of this kernel", "start": "1"},
    ],
)
def test_an_owner_of_this_host_without_a_lock_is_gone(tmp_path, change):
    alive = replace(this_process(), pid=os.getppid(), start=locks._start_time(os.getppid()))
    lock_folder(leave(tmp_path, replace(alive, **change)), "--run_dir").close()


def test_a_live_owner_of_this_host_counts_without_a_lock_too(tmp_path):
    """A file system may do nothing on flock."""
    alive = replace(this_process(), pid=os.getppid(), start=locks._start_time(os.getppid()))
    assert "that process is alive" in refusal(leave(tmp_path, alive))


def test_a_lock_file_of_an_earlier_version(tmp_path):
    host = this_process().host
    lock_folder(leave(tmp_path, f"process 12 on {host}"), "--run_dir").close()
    assert "process 12 on elsewhere" in refusal(leave(tmp_path, "process 12 on elsewhere"))


# ---- another host ------------------------------------------------------------------------------


@pytest.mark.fault("J2")
def test_an_owner_on_another_host_is_not_provably_gone(tmp_path):
    left = replace(this_process(), **ELSEWHERE, pid=4711, time="2026-01-02T03:04:05+00:00")
    line = refusal(leave(tmp_path, left))
    for text in ("process 4711 on elsewhere since 2026-01-02", f"Remove {tmp_path / LOCK}"):
        assert text in line
    (tmp_path / LOCK).unlink()
    lock_folder(tmp_path, "--run_dir").close()


@pytest.mark.fault("J2")
def test_a_requeued_job_takes_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    left = replace(this_process(), **ELSEWHERE)
    assert left.job == "77"
    lock_folder(leave(tmp_path, left), "--run_dir").close()


@pytest.mark.fault("J2")
@pytest.mark.parametrize(
    ("answer", "free"),
    [
        ({"out": "RUNNING\\n"}, False),
        ({"out": "PENDING\\n"}, False),
        ({"out": "COMPLETING\\n"}, False),
        ({"out": "COMPLETED\\nRUNNING\\n"}, False),
        ({"out": "TIMEOUT\\n"}, True),
        ({"out": ""}, True),
        ({"error": "slurm_load_jobs error: Invalid job id specified\\n", "code": 1}, True),
        ({"error": "slurm_load_jobs error: Unable to contact\\n", "code": 1}, False),
    ],
)
def test_slurm_knows_whether_a_job_is_gone(tmp_path, squeue, answer, free):
    calls = squeue(**answer)
    leave(tmp_path, replace(this_process(), **ELSEWHERE, job="78"))
    if free:
        lock_folder(tmp_path, "--run_dir").close()
    else:
        assert "its Slurm job is " in refusal(tmp_path)
    assert calls.read_text() == "-h -j 78 -o %T\n"


def test_without_squeue_nothing_is_proved(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    leave(tmp_path, replace(this_process(), **ELSEWHERE, job="78"))
    assert "its Slurm job is in an unknown state" in refusal(tmp_path)


def test_a_squeue_that_hangs_proves_nothing(tmp_path, monkeypatch):
    def hang(command, *, timeout, **_):
        assert timeout <= 10
        raise locks.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(locks.subprocess, "run", hang)
    leave(tmp_path, replace(this_process(), **ELSEWHERE, job="78"))
    assert "in an unknown state" in refusal(tmp_path)


def test_a_job_of_another_cluster_is_not_looked_up(tmp_path, squeue):
    calls = squeue(error="Invalid job id specified", code=1)
    leave(tmp_path, replace(this_process(), **ELSEWHERE, job="78", cluster="far"))
    assert "it is of another cluster (far)" in refusal(tmp_path)
    assert not calls.exists()


# ---- hostile content ---------------------------------------------------------------------------


def owner_text(**changes: object) -> str:
    return json.dumps({**asdict(this_process()), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[2J\x07 nobody\r\nsecond line",
        "A" * 2**20,
        "[" * 4000,
        "{}",
        owner_text(pid="1; reboot"),
        owner_text(pid=True),
        owner_text(pid=-1),
        owner_text(job=["1"]),
        owner_text(more=1),
        "\ud7ff\u202e owner",
    ],
)
def test_a_lock_file_that_names_nobody_is_shown_and_left(tmp_path, text):
    line = refusal(leave(tmp_path, text))
    assert "its lock file names no owner" in line and f"Remove {tmp_path / LOCK}" in line
    assert text[:60] in line or "\\" in line or text == "{}"


@pytest.mark.fault("K4")
def test_a_job_number_is_no_option_and_no_command(tmp_path, squeue):
    calls = squeue(out="RUNNING\\n")
    for job in ("-1", "78 --me", "$(touch x)", "1\n2"):
        leave(tmp_path, replace(this_process(), **ELSEWHERE, job=job))
        assert "in an unknown state" in refusal(tmp_path)
    assert not calls.exists()


def test_a_linked_lock_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(victim)
    assert ".lock is a link, which is not followed; remove it" in refusal(tmp_path / "run")
    assert victim.read_text() == "precious"


def test_a_pipe_in_place_of_the_lock_file(tmp_path):
    os.mkfifo(tmp_path / LOCK)
    assert ".lock is a pipe; remove it" in refusal(tmp_path)
    assert stat.S_ISFIFO(os.stat(tmp_path / LOCK).st_mode)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file is no folder)" in refusal(tmp_path / "file" / "run")
