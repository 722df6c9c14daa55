"""The run folder goes away under a run."""

import os
import signal

import pytest

from tests.events import wait_for


@pytest.mark.fault("D2")
@pytest.mark.slow
def test_a_folder_that_vanishes_ends_the_run_with_its_checkpoints_whole(starter):
    folder, away = starter.folder / "run", starter.folder / "away"
    settings = ("--set", "phases.steps=20", "eval.every=0")
    held = ("--inject", "stop@step:6")  # the next checkpoint is that of step 8
    job = starter.start(starter.arguments("--run_dir", str(folder), *settings, *held))
    wait_for(lambda: job.stopped, "step 6", alive=lambda: job.alive)
    folder.rename(away)
    os.kill(job.process.pid, signal.SIGCONT)
    done = job.wait()
    assert done.code in (73, 74), done.err
    assert "Traceback" not in done.err and str(folder) in done.err.splitlines()[-1]
    away.rename(folder.with_name("back"))
    done = starter.run("--run_dir", str(starter.folder / "back"), *settings, "--resume", "must")
    assert done.code == 0, done.err
    assert "resumed from step_4" in done.out
