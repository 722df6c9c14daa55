"""A run that is asked to stop saves, says so with code 75, and goes on as if nothing had been."""

import contextlib
import itertools
import signal
import time
from collections.abc import Callable

import pytest

from sparsecl import place, signals
from sparsecl.checkpoint.publish import candidates, newest_valid
from sparsecl.engine.loop.stop import StopRequest
from sparsecl.errors import Preempted
from tests.events import wait_for
from tests.launch import outcome
from tests.launch.starter import Done, Job, Starter

STEPS = ("--set", "phases.steps=12")


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory, shared_cache) -> outcome.Outcome:
    """A run that nobody stops."""
    starter = Starter(tmp_path_factory.mktemp("whole"), shared_cache)
    done = starter.run("--run_dir", str(starter.folder / "run"), *STEPS)
    assert done.code == 0, done.err
    return outcome.read(starter.folder / "run")


def run(starter: Starter, *faults: str, world_size: int = 1) -> list[Done]:
    inject = ("--inject", *faults) if faults else ()
    words = starter.arguments("--run_dir", str(starter.folder / "run"), *STEPS, *inject)
    return [job.wait() for job in starter.start_ranks(words, world_size)]


@pytest.mark.fault("P6", "P8", "X6")
@pytest.mark.parametrize(
    ("faults", "name", "step"),
    [
        (("term@step:7",), "SIGTERM", 7),
        # The last step of the first phase: its end comes first, and is saved once.
        (("usr1@step:12",), "SIGUSR1", 12),
        # The second signal arrives in the save that the first one asked for.
        (("int@step:7", "term@save.shard_written:3"), "SIGINT", 7),
        (("hup@step:3",), "SIGHUP", 3),
    ],
)
def test_a_signal_is_answered_after_the_step(starter, whole, faults, name, step):
    (done,) = run(starter, *faults)
    assert done.code == 75
    assert f"{name}: stopped after step {step}" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    root = starter.folder / "run" / "checkpoints"
    found, _ = newest_valid(root)
    assert found is not None and found.name == f"step_{step}"
    assert not list(root.glob("*.tmp"))
    (done,) = run(starter)
    assert done.code == 0, done.err
    outcome.assert_equal(outcome.read(starter.folder / "run"), whole)


def rain(job: Job, begins: Callable[[], bool]) -> Done:
    """Signals of all kinds, from `begins` on until the process has ended."""
    wait_for(begins, "the first signal", alive=lambda: job.alive)
    kinds = itertools.cycle(signals.STOP_SIGNALS)
    while job.alive:
        with contextlib.suppress(ProcessLookupError):
            job.signal(next(kinds))
        time.sleep(0.001)
    return job.wait()


@pytest.mark.fault("X1")
def test_signals_on_the_way_out_change_nothing(starter):
    words = starter.arguments("--run_dir", str(starter.folder / "run"), *STEPS)
    job = starter.start([*words, "--inject", "term@step:7"])
    said = job.folder / "err"
    done = rain(job, lambda: said.exists() and "stopped after step 7" in said.read_text())
    assert done.code == 75 and "Traceback" not in done.err


@pytest.mark.fault("X2")
def test_a_finished_run_is_finished_whatever_signals_come(starter):
    words = starter.arguments("--run_dir", str(starter.folder / "run"), *STEPS)
    job = starter.start([*words, "--inject", "term@phase_end:24"])
    results = starter.folder / "run" / "results.json"
    done = rain(job, results.exists)
    assert done.code == 0, done.err
    assert "that was the last step: the run is finished" in done.err
    assert "Traceback" not in done.err
    assert (starter.folder / "run" / "forgetting.png").stat().st_size > 1000


@pytest.mark.fault("P7")
def test_a_signal_to_one_rank_stops_all_after_the_same_step(starter):
    ends = run(starter, "usr1@step:6/rank=1", world_size=2)
    assert [end.code for end in ends] == [75, 75]
    assert "rank 1: SIGUSR1: saving after this step" in ends[1].err
    assert "SIGUSR1: stopped after step 6" in ends[0].err
    assert candidates(starter.folder / "run" / "checkpoints")[0].name == "step_6"


@pytest.fixture
def listening():
    signals.listen()
    yield
    signals.forget()


@pytest.mark.fault("P6", "X3")
def test_before_the_first_step_there_is_nothing_to_save(listening):
    signals.answer_by(signals.leave)
    with pytest.raises(Preempted, match="SIGHUP before the first step"):
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)  # the first one is being answered
    with pytest.raises(Preempted, match="SIGHUP before"):  # if a library has swallowed it
        StopRequest().arm()


@pytest.mark.fault("X3")
def test_a_signal_that_comes_during_the_imports_is_answered_after_them(listening):
    signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(Preempted, match="SIGUSR1 before the first step"):
        signals.answer_by(signals.leave)


@pytest.mark.fault("X6")
def test_what_a_shell_made_the_process_ignore_stays_ignored():
    """nohup, and `&` in a script."""
    for number in (signal.SIGHUP, signal.SIGINT):
        before = signal.signal(number, signal.SIG_IGN)
        try:
            signals.listen()
            signal.raise_signal(number)
            assert signals.received() is None
        finally:
            signals.forget()
            assert signal.signal(number, before) == signal.SIG_IGN


def test_the_first_signal_counts_and_the_end_is_not_stopped(listening, capfd):
    stop = StopRequest()
    stop.arm()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert stop.agreed() == "SIGTERM"
    assert capfd.readouterr().err == (
        "sparsecl: rank 0: SIGTERM: saving after this step, then stopping\n"
    )
    stop.rest()
    signal.raise_signal(signal.SIGHUP)
    said = "sparsecl: rank 0: that was the last step: the run is finished\n"
    assert capfd.readouterr().err == said


@pytest.mark.fault("X12")
def test_a_launcher_that_is_gone_is_a_signal(listening, monkeypatch, capfd):
    monkeypatch.setattr(place, "is_orphan", lambda: True)
    stop = StopRequest()
    stop.arm()
    assert stop.agreed() == "SIGHUP" and stop.agreed() == "SIGHUP"
    assert capfd.readouterr().err.count("the launcher is gone") == 1
