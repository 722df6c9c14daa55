"""A run that is asked to stop saves, says so with code 75, and goes on as if nothing had been."""

import signal

import pytest

from sparsecl.checkpoint.publish import candidates, newest_valid
from sparsecl.engine.stop import StopRequest
from sparsecl.errors import Preempted
from tests.launch import outcome
from tests.launch.starter import Done, Starter

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


@pytest.mark.parametrize(
    ("faults", "name", "step"),
    [
        (("term@step:7",), "SIGTERM", 7),
        # The last step of the first phase: its end comes first, and is saved once.
        (("usr1@step:12",), "SIGUSR1", 12),
        # The second signal arrives in the save that the first one asked for.
        (("int@step:7", "term@save.shard_written:3"), "SIGINT", 7),
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


def test_a_signal_to_one_rank_stops_all_after_the_same_step(starter):
    ends = run(starter, "usr1@step:6/rank=1", world_size=2)
    assert [end.code for end in ends] == [75, 75]
    assert "rank 1: SIGUSR1: saving after this step" in ends[1].err
    assert "SIGUSR1: stopped after step 6" in ends[0].err
    assert candidates(starter.folder / "run" / "checkpoints")[0].name == "step_6"


def test_before_the_first_step_there_is_nothing_to_save():
    with StopRequest() as stop, pytest.raises(Preempted, match="SIGUSR1 before the first step"):
        signal.raise_signal(signal.SIGUSR1)
    with StopRequest() as stop:
        stop.armed = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.agreed() == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
