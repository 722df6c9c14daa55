"""Ranks that look for each other at a place that is taken, or where nobody is."""

import os
import signal
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch.distributed as torch_dist

from sparsecl import dist, meeting, place, signals
from sparsecl.engine import run
from sparsecl.errors import DataError, PeerLostError, Preempted
from tests.events import free_port, wait_for
from tests.launch.starter import Done, Job, Starter

JOIN = ("--set", "health.join_seconds=1.5")


def variables(rank: int, port: int) -> dict[str, str]:
    """What a launcher says to one of two ranks."""
    env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    return env | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def begin(starter: Starter, rank: int, port: int, *more: str) -> Job:
    words = starter.arguments("--run_dir", str(starter.folder / "run"), *more)
    return starter.start(words, variables(rank, port))


def start(starter: Starter, rank: int, port: int) -> Done:
    """One of two ranks; the other is never started."""
    return begin(starter, rank, port, *JOIN).wait()


def wait_for_port(port: int, job: Job) -> None:
    """Until rank 0 waits at the meeting place."""

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens, "rank 0 listens", alive=lambda: job.alive)


# These wait for join_seconds, 600, unless something is noticed; `Job.wait` fails far earlier.


@pytest.mark.fault("X4")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_that_dies_before_it_has_come_is_named_soon(starter, number):
    port = free_port()
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, **variables(1, port)})
    try:
        job = begin(starter, 0, port)
        wait_for_port(port, job)
        other.send_signal(number)
        done = job.wait()  # it is not yet counted by its parent, as under a launcher that hangs
    finally:
        other.kill()
        other.wait()
    assert done.code == 76, done.err
    assert "sparsecl: rank 1 has ended, or does not run, before all ranks had met" in done.err
    assert not (starter.folder / "run").exists()


@pytest.mark.fault("X4")
def test_a_rank_that_came_and_fell_silent_is_named(starter, monkeypatch):
    """As rank 0 sees a rank of another machine, whose processes it cannot see."""
    monkeypatch.setattr(meeting, "SILENT_LOOKS", 3)
    monkeypatch.setattr(meeting, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(place, "lost_siblings", list)
    for name, value in variables(0, free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "3")
    store = torch_dist.HashStore()
    store.set("sparsecl/here/2", "7")
    with pytest.raises(PeerLostError, match="rank 2 has ended, or does not run"):
        meeting._gather(store, time.monotonic() + 600, "{}")


@pytest.mark.fault("X3")
def test_rank_0_hears_signals_while_it_waits(starter):
    port = free_port()
    job = begin(starter, 0, port)
    wait_for_port(port, job)
    job.signal(signal.SIGTERM)
    done = job.wait()
    assert done.code == 75, done.err
    assert "SIGTERM before the first step: nothing to save yet" in done.err.splitlines()[-1]


@pytest.mark.fault("X3")
def test_the_others_hear_signals_while_they_wait_for_rank_0(monkeypatch):
    for name, value in variables(1, free_port()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(meeting.time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
    signals.listen()
    signals.answer_by(signals.leave)
    try:
        with pytest.raises(Preempted, match="SIGTERM before the first step"):
            meeting.meet(600.0, "{}")
    finally:
        signals.forget()


@pytest.mark.fault("J3")
def test_a_port_in_use_is_said_with_the_way_out(starter):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = start(starter, 0, port)
    assert done.code == 64, done.err
    line = done.err.splitlines()[-1]
    assert f"sparsecl: the ranks cannot meet at 127.0.0.1:{port}" in line
    assert "--master_port" in line
    assert not (starter.folder / "run").exists()


@pytest.mark.fault("J3")
def test_an_address_where_nobody_is(starter):
    """As a requeued job has it that was given the MASTER_ADDR of its last attempt."""
    port = free_port()
    done = start(starter, 1, port)
    assert done.code == 76, done.err
    assert f"rank 1 cannot reach rank 0 at 127.0.0.1:{port}" in done.err.splitlines()[-1]


@pytest.mark.fault("S5")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--set", "optimizer.lr=0.5"), "config.optimizer.lr: 0.003 -> 0.5"),
        (("--set", "parallel.tensor=2"), "config.parallel.tensor: 1 -> 2"),
        (("--weights_only",), "allowed.new_optimizer: false -> true"),
    ],
)
def test_a_rank_that_was_started_as_something_else_does_not_train_along(starter, more, said):
    port = free_port()
    jobs = [begin(starter, 0, port), begin(starter, 1, port, *more)]
    first, other = (job.wait() for job in jobs)
    assert (first.code, other.code) == (64, 64), first.err + other.err
    assert (
        first.line.startswith("sparsecl: rank 1 was not started as rank 0: ") and said in first.line
    )
    assert "--master_port" in first.line and not (starter.folder / "run").exists()


@pytest.mark.fault("S5")
def test_a_listener_that_says_nothing_is_not_waited_for(starter):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        done = start(starter, 1, mute.getsockname()[1])
    assert done.code == 76 and "who listens there does not answer" in done.line


@pytest.mark.fault("S5")
def test_a_rank_that_finds_other_text_does_not_train_along(monkeypatch):
    found = SimpleNamespace(fingerprint="a", tokenizer=SimpleNamespace(digest="b"))
    monkeypatch.setattr(dist, "gather_objects", lambda mine: [mine, mine, ("c", "b")])
    with pytest.raises(DataError, match="rank 2 has other text or another tokenizer than rank 0"):
        run._check_same_text(found)
