"""launch/sweep.py on a study of streams: runs that are killed go on, and mistakes are told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsecl import config as configs
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.running import runner as running
from sparsecl.experiments.running.runner import Runner
from sparsecl.experiments.study.study_plan import read_plan, run_folder
from sparsecl.programs import sweep
from sparsecl.streams import run as streams
from sparsecl.streams.config import StreamRunConfig
from tests.events import HANG

pytest.importorskip("sklearn", reason="the digits")
ROOT = Path(__file__).resolve().parents[2]

STUDY = """
name: tiny
base:
  stream: {tasks: 4, samples_per_task: 40}
  learner: {width: 6, layers: 2}
  optimizer: {lr: 0.05}
  panel: {samples: 20, every: 20}
seeds: 3
arms:
  bp: {}
  cbp: {methods: {cbp: {maturity: 5, rate: 0.01}}}
  broken: {optimizer: {lr: 1.0e+30}}
analysis: {reference: bp}
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


class Ended:
    """A process that has ended before it is looked at."""

    def __init__(self, code):
        self.code = code

    def poll(self):
        return self.code

    def stop(self):
        pass


class Here:
    """Does runs in this process, and kills those of an arm after so many saves."""

    slots = 1

    def __init__(self, kill=None):
        self.kill, self.started = kill, []

    def start(self, command, *, log, slot):
        file, folder = Path(command[1]), Path(command[3])
        self.started.append(file.stem)
        config = configs.load(StreamRunConfig, file)
        with pytest.MonkeyPatch.context() as patch:
            if file.stem == self.kill:
                save, left = streams.checkpoint.save, [2]

                def once(*given, **named):
                    save(*given, **named)
                    left[0] -= 1
                    if not left[0]:
                        raise KeyboardInterrupt

                patch.setattr(streams.checkpoint, "save", once)
            log.parent.mkdir(exist_ok=True)
            try:
                streams.run(streams.check(config, folder))
            except KeyboardInterrupt:
                return Ended(-9)
            except ValueError as error:
                log.write_text(f"sparsecl: {error}\n")
                return Ended(2)
        return Ended(0)


def go(folder, place):
    watch = lambda runner: None  # noqa: E731
    return Runner(folder, read_plan(folder), place, train=["stream"], watch=watch).run()


def opened(study, folder, monkeypatch):
    """The study folder, with nothing run."""
    monkeypatch.setattr(sweep, "run", lambda *_: False)
    monkeypatch.setattr(sweep, "show", lambda *_: False)
    assert sweep.main([str(study), "--study_dir", str(folder), "--only", "bp,cbp"]) == 1


def figures(folder):
    study = collect(folder)
    return {arm.name: study.values(arm.name, "accuracy") for arm in study.plan.arms}


def test_an_arm_that_was_killed_goes_on_and_one_that_is_done_is_left_alone(
    study, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(running, "TICK", 0.0)
    study.write_text(STUDY.replace("  broken: {optimizer: {lr: 1.0e+30}}\n", ""))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    opened(study, whole, monkeypatch)
    shutil.copytree(whole, cut)
    assert go(whole, Here())
    first = Here(kill="cbp")
    assert not go(cut, first) and first.started == ["bp", "cbp"]
    failed = {r.run.name: r.reason for r in collect(cut).results if r.status == "failed"}
    assert list(failed) == ["cbp/seeds"] and "SIGKILL" in failed["cbp/seeds"]
    again = Here()
    assert go(cut, again) and again.started == ["cbp"]
    assert "Goes on    pack 1, task 3" in capfd.readouterr().out
    assert figures(cut) == figures(whole)
    found = [
        json.loads((run_folder(folder, run) / "results.json").read_text())["per_seed"]
        for folder in (whole, cut)
        for run in read_plan(folder).runs
    ]
    assert found[:2] == found[2:]


def test_dry_run_prints_the_plan_and_writes_nothing(study, tmp_path, capsys):
    folder = tmp_path / "none"
    assert sweep.main([str(study), "--study_dir", str(folder), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "3 arms, 3 seeds each" in out and "cbp minus bp" in out and not folder.exists()


@pytest.mark.parametrize(
    ("old", "new", "words", "code", "text"),
    [
        ("width: 6", "width: 0", (), 64, "base.learner.width"),
        ("samples: 20,", "samples: 50,", (), 64, "arms.bp: panel.samples=50 is more than a task"),
        ("bp: {}", "bp: {stream: {data: nowhere}}", (), 66, "nowhere"),
        ("bp: {}", "bp: {methods: {rigl: {}}}", (), 64, "arms.bp: methods.rigl"),
        ("tiny", "tiny", ("--only", "x"), 64, "--only x: there is no such arm"),
        ("tiny", "tiny", ("--where", "slurm"), 64, "--where slurm: a study of streams runs on one"),
        ("tiny", "tiny", ("--scale", "x"), 64, "has no such scale"),
    ],
)
def test_mistakes_are_told_before_any_work(study, tmp_path, capsys, old, new, words, code, text):
    study.write_text(STUDY.replace(old, new))
    folder = tmp_path / "none"
    assert sweep.main([str(study), "--study_dir", str(folder), *words]) == code
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1 and not folder.exists()


def test_another_study_is_refused_in_its_folder(study, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "study"
    opened(study, folder, monkeypatch)
    assert sweep.main([str(study), "--study_dir", str(folder), "--seeds", "4"]) == 64
    assert "holds another study (seeds (0, 1, 2) -> (0, 1, 2, 3))" in capsys.readouterr().err


def start(study, folder):
    words = [sys.executable, str(ROOT / "launch" / "sweep.py"), str(study)]
    return subprocess.Popen(
        [*words, "--study_dir", str(folder), "--jobs", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_study_that_is_killed_ends_as_one_that_is_not(study, tmp_path):
    study.write_text(
        STUDY.replace("tasks: 4, samples_per_task: 40", "tasks: 30, samples_per_task: 100")
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(study, whole)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 1, err
    assert "2 of 3 runs done, 1 failed" in err
    table = out.partition("study tiny: ")[2].partition("Report ")[0]
    process, end = start(study, cut), time.monotonic() + HANG
    while not list(cut.glob("runs/*/seeds/checkpoints/latest.json")) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=HANG)
    process = start(study, cut)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 1, err
    assert out.partition("study tiny: ")[2].partition("Report ")[0] == table
    assert (cut / "report" / "report.html").is_file()
