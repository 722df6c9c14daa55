"""A run that is killed and started again ends as one that never stopped, bit for bit."""

import functools
from pathlib import Path

import numpy as np
import pytest

from sparsecl.checkpoint.publish import candidates
from tests.launch import outcome
from tests.launch.kills import kill_at_step, kill_in_save, last_step, wait_for
from tests.launch.starter import Job, Starter

SURVIVAL = 35.0  # seconds that a rank may outlive the others


@pytest.fixture(scope="module")
def uninterrupted(server, tmp_path_factory, shared_cache):
    """The outcome of the whole run on some layout."""

    @functools.cache
    def run(stage: str, precision: str = "fp32", world_size: int = 1) -> outcome.Outcome:
        starter = Starter(tmp_path_factory.mktemp("whole"), shared_cache)
        finish(starter, stage, precision, world_size)
        return outcome.read(starter.folder / "run")

    return run


def start(starter: Starter, stage: str, precision: str, world_size: int) -> list[Job]:
    folder = starter.folder / "run"
    settings = ("--run_dir", str(folder), "--set", f"precision={precision}", "phases.steps=20")
    return starter.start_ranks(starter.arguments(*settings, stage=stage), world_size)


def finish(starter: Starter, stage: str, precision: str, world_size: int) -> None:
    ends = [job.wait() for job in start(starter, stage, precision, world_size)]
    assert [end.code for end in ends] == [0] * world_size, ends


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        ("zero2", "fp32"),
        pytest.param("zero0", "fp32", marks=pytest.mark.slow),
        pytest.param("zero3", "fp32", marks=pytest.mark.slow),
        pytest.param("zero1", "bf16", marks=pytest.mark.slow),
        pytest.param("zero3", "bf16", marks=pytest.mark.slow),
    ],
)
def test_one_kill(starter, uninterrupted, stage, precision):
    rng = np.random.default_rng([1, len(stage + precision)])
    folder = starter.folder / "run"
    (job,) = start(starter, stage, precision, 1)
    # Every fourth step of the 40 is saved.
    kill_at_step(job, folder, int(rng.integers(5, 25)), delay=float(rng.uniform(0, 0.01)))
    assert candidates(folder / "checkpoints")
    finish(starter, stage, precision, 1)
    assert "resumed from step_" in (folder / "log.txt").read_text()
    outcome.assert_equal(outcome.read(folder), uninterrupted(stage, precision))


@pytest.mark.slow
def test_many_kills_in_one_run(starter, uninterrupted):
    """Kills at random steps, some before the first checkpoint, and kills inside saves."""
    rng = np.random.default_rng(7)
    folder = starter.folder / "run"
    caught = 0
    for step in sorted(rng.choice(np.arange(1, 25), size=4, replace=False)):
        (job,) = start(starter, "zero2", "fp32", 1)
        kill_at_step(job, folder, int(step), delay=float(rng.uniform(0, 0.01)))
        (job,) = start(starter, "zero2", "fp32", 1)
        caught += kill_in_save(job, folder)
    assert caught >= 2
    finish(starter, "zero2", "fp32", 1)
    outcome.assert_equal(outcome.read(folder), uninterrupted("zero2"))


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision", "victims"),
    [
        ("zero2", "fp32", (0,)),
        ("zero2", "fp32", (1,)),
        ("zero2", "fp32", (0, 1)),
        ("zero3", "bf16", (1,)),
    ],
)
def test_two_ranks(starter, uninterrupted, stage, precision, victims):
    folder = starter.folder / "run"
    jobs = start(starter, stage, precision, 2)
    wait_for(lambda: last_step(folder) >= 6, jobs[0])
    for rank in victims:
        jobs[rank].kill()
    for rank, job in enumerate(jobs):
        # Nobody tells the survivor; it must notice by itself.
        code = job.wait(timeout=SURVIVAL).code
        assert code == -9 if rank in victims else code > 0
    finish(starter, stage, precision, 2)
    assert "resumed from step_" in (folder / "log.txt").read_text()
    outcome.assert_equal(outcome.read(folder), uninterrupted(stage, precision, 2))


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_killed_in_a_save(starter, uninterrupted):
    folder: Path = starter.folder / "run"
    for _ in range(3):
        jobs = start(starter, "zero2", "fp32", 2)
        kill_in_save(jobs[0], folder)
        assert jobs[1].wait(timeout=SURVIVAL).code > 0
    finish(starter, "zero2", "fp32", 2)
    outcome.assert_equal(outcome.read(folder), uninterrupted("zero2", world_size=2))
