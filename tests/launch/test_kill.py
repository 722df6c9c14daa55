"""A run that is killed and started again ends as one that never stopped, bit for bit."""

import functools
import time

import numpy as np
import pytest

from sparsecl.checkpoint.publish import candidates
from sparsecl.faults import SAVE_POINTS
from tests.events import wait_for
from tests.launch import outcome
from tests.launch.starter import Job, Starter


@pytest.fixture(scope="module")
def uninterrupted(server, tmp_path_factory, shared_cache):
    """The outcome of the whole run on some layout."""

    @functools.cache
    def run(stage: str, precision: str = "fp32", world_size: int = 1) -> outcome.Outcome:
        starter = Starter(tmp_path_factory.mktemp("whole"), shared_cache)
        finish(starter, stage, precision, world_size)
        return outcome.read(starter.folder / "run")

    return run


def start(starter: Starter, stage: str, precision: str, world_size: int, *faults: str) -> list[Job]:
    """Start the ranks of a run of 40 steps, of which every fourth is saved."""
    folder = starter.folder / "run"
    inject = ("--inject", *faults) if faults else ()
    settings = ("--run_dir", str(folder), "--set", f"precision={precision}", "phases.steps=20")
    return starter.start_ranks(starter.arguments(*settings, *inject, stage=stage), world_size)


def finish(starter: Starter, stage: str, precision: str, world_size: int) -> None:
    ends = [job.wait() for job in start(starter, stage, precision, world_size)]
    assert [end.code for end in ends] == [0] * world_size, ends


@pytest.mark.fault("P1")
@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        ("zero2", "fp32"),
        pytest.param("zero0", "fp32", marks=pytest.mark.slow),
        pytest.param("zero1", "bf16", marks=pytest.mark.slow),
        pytest.param("zero3", "bf16", marks=pytest.mark.slow),
    ],
)
def test_one_kill(starter, uninterrupted, stage, precision):
    rng = np.random.default_rng([1, len(stage + precision)])
    folder = starter.folder / "run"
    # At any moment, as seen from outside; it waits near its end for a killer that is late.
    (job,) = start(starter, stage, precision, 1, "stop@step:39")
    step = int(rng.integers(5, 25))
    wait_for(lambda: outcome.last_step(folder) >= step, f"step {step}", alive=lambda: job.alive)
    time.sleep(float(rng.uniform(0, 0.01)))
    job.kill()
    assert job.wait().code == -9
    assert candidates(folder / "checkpoints")
    finish(starter, stage, precision, 1)
    assert "resumed from step_" in (folder / "log.txt").read_text()
    outcome.assert_equal(outcome.read(folder), uninterrupted(stage, precision))


@pytest.mark.fault("P2")
@pytest.mark.slow
def test_many_kills_in_one_run(starter, uninterrupted):
    """Kills at random steps, some before the first checkpoint, and kills inside saves."""
    rng = np.random.default_rng(7)
    folder = starter.folder / "run"
    steps = sorted(rng.choice(np.arange(1, 25), size=4, replace=False))
    for step, point in zip(steps, rng.choice(sorted(SAVE_POINTS), size=4), strict=True):
        for fault in (f"kill@step:{step}", f"kill@{point}"):
            (job,) = start(starter, "zero2", "fp32", 1, fault)
            assert job.wait().code == -9
    finish(starter, "zero2", "fp32", 1)
    outcome.assert_equal(outcome.read(folder), uninterrupted("zero2"))


@pytest.mark.fault("P1", "P2")
@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "victims"),
    [
        ("zero2", "fp32", (0,)),
        ("zero2", "fp32", (0, 1)),
        ("zero3", "bf16", (1,)),
    ],
)
def test_two_ranks(starter, uninterrupted, stage, precision, victims):
    folder = starter.folder / "run"
    kills = [f"kill@step:7/rank={rank}" for rank in victims]
    for rank, job in enumerate(start(starter, stage, precision, 2, *kills)):
        # Nobody tells the survivor; it must notice by itself.
        code = job.wait().code
        assert code == -9 if rank in victims else code > 0
    finish(starter, stage, precision, 2)
    assert "resumed from step_" in (folder / "log.txt").read_text()
    outcome.assert_equal(outcome.read(folder), uninterrupted(stage, precision, 2))


@pytest.mark.fault("P3", "P5")
@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_killed_in_a_save(starter, uninterrupted):
    for point in ("save.shard_written", "save.reported", "save.renamed"):
        victim, survivor = start(starter, "zero2", "fp32", 2, f"kill@{point}/rank=0")
        assert (victim.wait().code, survivor.wait().code > 0) == (-9, True)
    finish(starter, "zero2", "fp32", 2)
    outcome.assert_equal(outcome.read(starter.folder / "run"), uninterrupted("zero2", world_size=2))
