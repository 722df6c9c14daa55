"""The runner: order, failures, needs, and that stopping it changes nothing."""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsecl.errors import UserError
from sparsecl.experiments.findings.collect import collect, status_of, status_text
from sparsecl.experiments.running import local
from sparsecl.experiments.running.overview import Overview, bar, clock
from sparsecl.experiments.running.runner import steps_done, why_ended
from sparsecl.experiments.study.study_plan import (
    AnalysisConfig,
    Arm,
    Run,
    StudyPlan,
    failure_file,
    log_file,
    read_plan,
    run_folder,
    write_plan,
)
from sparsecl.programs import sweep
from tests.events import HANG, wait_for
from tests.experiments import fake_train
from tests.experiments.fake_sweep import make_runner

SWEEP = Path(__file__).parents[1] / "fake_sweep.py"


def write_study(folder, arms=("dense", "sparse"), seeds=(0, 1), needs=None):
    """A plan of these arms; `needs` maps an arm to the arm it waits for."""
    needs = needs or {}
    made = [
        Arm(name=n, label=n, kind="er_fixed", density=0.1, live=1, total=10, flops_per_token=6,
            steps=200, tokens=2000)
        for n in arms
    ]  # fmt: skip
    runs = [
        Run(
            name=f"{n}/seed{s}",
            arm=n,
            seed=s,
            needs=f"{needs[n]}/seed{s}" if n in needs else None,
        )
        for s in seeds
        for n in arms
    ]
    plan = StudyPlan(
        name="fake", question="", scale="demo", seeds=tuple(seeds), analysis=AnalysisConfig(),
        arms=tuple(made), runs=tuple(runs), ds_config="none.json", threads=1, command="",
        digest="0",
    )  # fmt: skip
    write_plan(folder, plan)
    return folder


def values(folder):
    """All that the final table is made of."""
    return {result.run.name: (result.status, result.values) for result in collect(folder).results}


def test_everything_is_run_once_and_as_many_at_a_time_as_asked(tmp_path):
    folder, most = write_study(tmp_path), []
    runner = make_runner(folder, watch=lambda r: most.append(len(r.active)))
    assert runner.run() and max(most) == 2
    assert set(runner.status.values()) == {"done"}
    again = []
    assert make_runner(folder, watch=lambda r: again.append(len(r.active))).run()
    assert not again  # nothing was left to do


def test_a_failed_run_is_written_down_and_stops_nothing(tmp_path):
    folder = write_study(
        tmp_path, arms=("bad", "dense", "waits"), seeds=(0,), needs={"waits": "bad"}
    )
    assert not make_runner(folder).run()
    study = collect(folder)
    assert [(r.run.arm, r.status, r.reason) for r in study.results] == [
        ("bad", "failed", "step 2: the loss is nan"),
        ("dense", "done", ""),
        ("waits", "failed", "needs bad/seed0, which failed"),
    ]
    stored = json.loads(failure_file(folder, study.plan.runs[0]).read_text())
    assert stored["exit_code"] == 70 and stored["log"] == "logs/bad-seed0.txt"
    assert study.values("bad", "F_last") == {} and list(study.values("dense", "F_last")) == [0]
    assert status_text(folder, study.plan).splitlines() == [
        "1 done, 2 failed, 0 begun, 0 missing of 3 runs",
        "  failed  bad/seed0: step 2: the loss is nan",
        "  failed  waits/seed0: needs bad/seed0, which failed",
    ]
    # Another start tries again what failed, and says so again.
    assert not make_runner(folder).run()
    assert status_of(folder, study.plan.runs[0])[0] == "failed"


def test_a_run_that_was_preempted_is_started_again(tmp_path):
    folder = write_study(tmp_path, arms=("preempted", "stuck", "dense"), seeds=(0,))
    assert not make_runner(folder).run()
    assert [(r.run.arm, r.status) for r in collect(folder).results] == [
        ("preempted", "done"),
        ("stuck", "failed"),  # it never makes a step
        ("dense", "done"),
    ]
    calm = write_study(tmp_path / "calm", arms=("dense",), seeds=(0,))
    assert make_runner(calm).run()
    assert values(calm)["dense/seed0"] == values(folder)["dense/seed0"]


def test_a_run_that_needs_another_gets_its_loss_after_each_phase(tmp_path):
    folder = write_study(tmp_path, arms=("stopped", "sparse"), needs={"stopped": "sparse"})
    runner = make_runner(folder)
    assert runner.run()
    for seed in (0, 1):
        command = runner.command(Run(name="", arm="stopped", seed=seed, needs=f"sparse/seed{seed}"))
        values = json.loads(command[-1].removeprefix("phases.until_loss="))
        assert values == pytest.approx([2.0 + 0.1 * seed, 1.5], rel=1e-12)
    first = collect(folder).values("stopped", "first_loss")
    assert first == {0: pytest.approx(2.0), 1: pytest.approx(2.1)}


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_stopping_the_runner_at_any_time_changes_nothing(tmp_path, how):
    arms, seeds = ("dense", "sparse", "third"), (0, 1)
    whole = write_study(tmp_path / "whole", arms, seeds)
    for run in read_plan(whole).runs:
        assert fake_train.write(run_folder(whole, run), run.arm, run.seed) == 0
    cut, fifo = write_study(tmp_path / "cut", arms, seeds), tmp_path / "fifo"
    os.mkfifo(fifo)
    command = [sys.executable, str(SWEEP), str(cut)]
    # Runs of 7 lines: both wait in their middle, or one does and the other is anywhere.
    for num_lines, num_held in ((3, 2), (5, 1), (1, 2), (4, 1)):
        handle = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        env = {**os.environ, "FAKE_HOLD": f"{num_lines}:{fifo}"}
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
        for _ in range(num_held):
            wait_for(
                lambda h=handle: read_now(h), "a held run", alive=lambda p=process: p.poll() is None
            )
        process.send_signal(how)
        process.communicate(timeout=HANG)
        # The runs of a runner that is gone are gone too.
        wait_for(lambda h=handle: read_now(h) == b"", "the end of all runs")
        os.close(handle)
    assert subprocess.run(command).returncode == 0
    assert values(cut) == values(whole)


def test_a_run_whose_runner_died_before_it_could_ask_for_its_signal():
    child = os.fork()
    if child == 0:
        try:
            local.die_with_parent(parent=os.getpid())
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def read_now(handle):
    """A byte of the FIFO; b"" if nobody has it open, None if nobody says anything."""
    try:
        return os.read(handle, 1)
    except BlockingIOError:
        return None


def test_the_overview_tells_what_ended_and_what_remains(tmp_path):
    folder = write_study(tmp_path, arms=("bad", "dense"), seeds=(0,))
    stream = io.StringIO()
    make_runner(folder, watch=Overview(stream)).run()
    text = stream.getvalue()
    assert "failed  bad/seed0: step 2: the loss is nan" in text
    assert "done    dense/seed0" in text
    assert "fake (demo): 1 of 2 runs done, 1 failed, [####################] 100%" in text


def test_words_and_numbers():
    assert bar(1, 4) == "[#####...............] 25%" and bar(0, 0).endswith("100%")
    assert clock(59.6) == "1:00" and clock(3661) == "1:01:01"


BARS = "phase 0 a:   4%|4    | 1/24 [00:00<00:09]\rphase 0 a:  50%|#### | 12/24 [00:03<00:03]"


@pytest.mark.fault("X11")
@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        (3, None, "ended with 3"),
        (3, BARS, "ended with 3"),
        (70, "a\nsparsecl: the reason\nnoise after\n\n", "the reason"),
        (1, "Traceback\nValueError: x\n", "ValueError: x"),
        # What an earlier attempt has said is not why this one failed.
        (70, f"sparsecl: stopped after step 3\n{BARS}\nTraceback (most recent call last):\n  f()\n"
         "KeyError: 'x'\n", "KeyError: 'x'"),
        (-9, f"sparsecl: stopped after step 3\n{BARS}", "killed by SIGKILL, as the kernel does it "
         "when memory is short"),
        (137, BARS, "killed by SIGKILL, as the kernel does it when memory is short"),
        (-15, BARS, "ended by SIGTERM"),
        (134, BARS, "ended by SIGABRT"),
        (-11, BARS, "ended by SIGSEGV"),
        (247, BARS, "killed by SIGKILL, as the kernel does it when memory is short"),
    ],
)  # fmt: skip
def test_why_a_run_ended(tmp_path, code, text, reason):
    log = tmp_path / "log"
    if text is not None:
        log.write_text(text)
    assert why_ended(code, log) == reason


@pytest.mark.fault("X11")
def test_a_run_that_is_killed_says_so(tmp_path):
    runner = make_runner(write_study(tmp_path, ("killed",), (0,)))
    assert not runner.run()
    failure = json.loads(failure_file(tmp_path, runner.plan.runs[0]).read_text())
    assert failure["exit_code"] == -9 and failure["reason"].startswith("killed by SIGKILL")


def test_steps_done(tmp_path):
    run = Run(name="a/seed0", arm="a", seed=0)
    assert steps_done(run_folder(tmp_path, run)) == 0
    place = run_folder(tmp_path, run)
    place.mkdir(parents=True)
    (place / "scalars.jsonl").write_text('{"step": 7}\n{"kind": "end"}\n{"step": 9, "to')
    assert steps_done(run_folder(tmp_path, run)) == 7
    assert log_file(tmp_path, run).name == "a-seed0.txt"


@pytest.mark.fault("G7")
@pytest.mark.parametrize(
    ("given", "count", "expected"),
    [
        (None, 2, ["0", "1"]),
        ("4, 5", 2, ["4", "5"]),
        ("GPU-8932f937-d72c,MIG-GPU-1/7/0", 2, ["GPU-8932f937-d72c", "MIG-GPU-1/7/0"]),
        ("3,-1,4", 1, ["3"]),  # CUDA stops at the first name that is none
        ("", 0, []),
        (None, 0, []),
    ],
)
def test_a_study_stays_in_its_gpus(monkeypatch, given, count, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert local.visible_gpus(count) == expected


@pytest.mark.fault("G7")
def test_a_slot_is_a_gpu_and_foreign_ranks_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    log = tmp_path / "log"
    names = ("CUDA_VISIBLE_DEVICES", "RANK", "OMP_NUM_THREADS")
    show = f"import os; print(*(os.environ.get(k) for k in {names}))"
    place = local.LocalPlace(slots=4, threads=3, gpus=["4", "5"])
    process = place.start([sys.executable, "-c", show], log=log, slot=3)
    wait_for(lambda: process.poll() is not None, "its end")
    assert log.read_text().split() == ["5", "None", "3"]
    assert os.environ["RANK"] == "3"


@pytest.mark.fault("G7")
def test_a_study_begins_one_run_on_each_of_its_gpus(tmp_path, monkeypatch):
    given = {}

    def place(**arguments):
        given.update(arguments)
        raise UserError("far enough")

    monkeypatch.setattr(sweep, "LocalPlace", place)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    plan = read_plan(write_study(tmp_path))
    with pytest.raises(UserError, match="far enough"):
        sweep.run(tmp_path, plan, argparse.Namespace(jobs=None, threads=3))
    assert given == {"slots": 2, "threads": 3, "gpus": ["4", "5"]}
