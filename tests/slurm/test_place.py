"""SlurmPlace with stand-ins for sbatch and squeue: what is submitted, when, and in which words."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from sparsecl.errors import DataError, UserError
from sparsecl.experiments.running import slurm, slurm_task
from sparsecl.experiments.study.study_plan import (
    failure_file,
    read_plan,
    run_folder,
    write_plan,
)
from tests.experiments.running.test_runner import write_study
from tests.slurm.stand_ins import stand_ins
from tests.slurm.test_scripts import HOSTILE, ROOT


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The folder of the stand-ins for Slurm's commands."""
    return stand_ins(tmp_path / "fake", monkeypatch)


@pytest.fixture
def study(tmp_path):
    """Four runs; those of `stopped` need those of `sparse`. In a folder with a hostile name."""
    return write_study(tmp_path / HOSTILE.replace("/", ""), ("sparse", "stopped"), needs=NEEDS)


NEEDS = {"stopped": "sparse"}
PLACE = slurm.SlurmPlace(ROOT, limit=3, site=["GPU_TYPE=h100", "TIME=2:00:00", "ACCOUNT=a; b"])


def words(fake, number):
    return (fake / f"sbatch.{number}").read_text().split("\0")[:-1]


def look(study):
    """What is missing, and the text about the rest."""
    plan = read_plan(study)
    found = slurm.standings(study, plan, slurm.queue(study))
    return slurm.missing(plan, found), slurm.standing_text(study, plan, found)


def finish(study, number):
    folder = run_folder(study, read_plan(study).runs[number])
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{}")


def test_a_study_is_submitted_once_and_then_only_what_is_missing(study, fake):
    plan = read_plan(study)
    runs, text = look(study)
    assert [run.name for run in runs] == [run.name for run in plan.runs]
    assert text == "0 done, 0 running, 0 queued, 0 failed, 0 begun, 4 missing of 4 runs"
    preview = slurm.preview(study, PLACE.jobs(study, plan, runs, ()))
    PLACE.submit(study, plan, runs)

    arrays = [words(fake, 41), words(fake, 42)]
    assert "--array=0,2%3" in arrays[0] and "--array=1,3%3" in arrays[1]
    assert "--dependency=afterany:41" in arrays[1]
    assert not [word for word in arrays[0] if word.startswith("--dependency")]
    assert {"--nodes=1", "--gpus-per-node=h100:1", "--time=2:00:00", "--account=a; b"} < set(
        arrays[0]
    )
    assert arrays[0][-3:] == [str(study / "slurm" / "sweep.sbatch"), str(ROOT), str(study)]
    assert {"--dependency=afterany:41:42", str(study / "slurm" / "report.sbatch")} < set(
        words(fake, 43)
    )
    # The dry run has said exactly this, but for the numbers.
    said = preview.replace("JOB1", "41").replace("JOB2", "42")
    assert shlex.split(said) == [w for n in (41, 42, 43) for w in ["sbatch", *words(fake, n)]]
    assert "ACCOUNT='a; b'\n" in (study / "slurm" / "site.env").read_text()

    # One run is done, one is at work, one waits, one was lost: only the last comes again.
    finish(study, 0)
    (fake / "queue").write_text("41 2 RUNNING\n42 1 PENDING\n7 3 RUNNING\n43 N/A PENDING\n")
    runs, text = look(study)
    assert [run.name for run in runs] == ["stopped/seed1"]
    assert text.splitlines() == [
        "1 done, 1 running, 1 queued, 0 failed, 0 begun, 1 missing of 4 runs",
        "  queued   stopped/seed0",
        "  running  sparse/seed1",
    ]
    PLACE.submit(study, plan, runs)
    assert {"--array=3%3", "--dependency=afterany:41:42"} < set(words(fake, 44))
    assert "--dependency=afterany:41:42:44" in words(fake, 45)
    assert (
        fake / "cancelled"
    ).read_text() == "--state=PENDING 43\n"  # one report, after everything
    known = json.loads((study / "slurm" / "jobs.json").read_text())
    assert known == {"arrays": ["41", "42", "44"], "report": "45"}


def test_a_task_that_failed_is_shown_and_submitted_again(study, fake):
    plan = read_plan(study)
    PLACE.submit(study, plan, plan.runs)
    log = study / "logs" / "sparse-seed0.txt"
    log.parent.mkdir()
    log.write_text("noise\nsparsecl: step 2: the loss is nan\n")
    assert slurm_task.main(["failed", str(study), "0", "70"]) == 0
    runs, text = look(study)
    assert "  failed   sparse/seed0: step 2: the loss is nan" in text.splitlines()
    assert plan.runs[0] in runs
    PLACE.submit(study, plan, [plan.runs[0]])
    assert "--array=0%3" in words(fake, 44) and not failure_file(study, plan.runs[0]).exists()


def test_a_task_asks_for_its_words(study, capfdbinary):
    assert slurm_task.main(["begin", str(study), "2"]) == 0
    found = capfdbinary.readouterr().out.decode().split("\0")[:-1]
    assert found[:2] == [str(study / "logs" / "sparse-seed1.txt"), "1"]
    assert found[found.index("--run_dir") + 1] == str(study / "runs" / "sparse" / "seed1")
    assert found[-2:] == ["seed=1", "name=sparse-seed1"]
    # What it needs has not been done: that is said in the study, too.
    assert slurm_task.main(["begin", str(study), "3"]) == 64
    failure = json.loads(failure_file(study, read_plan(study).runs[3]).read_text())
    assert failure["reason"] == "needs sparse/seed1, which is not done"
    finish(study, 0)
    capfdbinary.readouterr()
    assert slurm_task.main(["begin", str(study), "0"]) == 0
    assert capfdbinary.readouterr().out == b""


def test_without_an_answer_of_slurm_nothing_is_submitted(study, fake, monkeypatch):
    plan = read_plan(study)
    PLACE.submit(study, plan, plan.runs)
    (fake / "queue").unlink()
    with pytest.raises(UserError, match="squeue: .*queue"):
        slurm.queue(study)
    (study / "slurm" / "jobs.json").write_text('{"arrays": ["1; rm x"], "report": ""}')
    with pytest.raises(DataError, match=r"jobs\.json: is not what was written there"):
        slurm.queue(study)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (fake / "sbatch").unlink()
    monkeypatch.setattr(slurm, "_environment", lambda: {"PATH": str(fake.parent / "none")})
    with pytest.raises(UserError, match="there is no sbatch here"):
        slurm._ask("sbatch")


@pytest.mark.parametrize(
    ("settings", "message"),
    [(["NODES=x"], "NODES=x: must be a number"), (["COLOUR=red"], "COLOUR: not a name")],
)
def test_a_wrong_setting_is_an_error_of_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        slurm.SlurmPlace(ROOT, site=settings)._site_options("study")


def test_names_that_slurm_would_change(tmp_path):
    assert slurm._pattern(Path("/a/100%j")) == "/a/100%%j"
    with pytest.raises(UserError, match="cannot write"):
        slurm._pattern(Path("/a\\b"))


@pytest.mark.parametrize(
    ("numbers", "text"), [([0], "0"), ([0, 1, 2, 5], "0-2,5"), ([1, 3, 4], "1,3-4")]
)
def test_ranges(numbers, text):
    assert slurm._ranges(numbers) == text


def test_each_link_of_a_chain_is_an_array_after_those_before(tmp_path, fake):
    arms = ("dense", "first", "second", "random")
    study = write_study(tmp_path / "study", arms, seeds=(0,))
    plan = read_plan(study)
    names = {run.arm: run.name for run in plan.runs}
    takes = {"first": "dense", "second": "first", "random": "first"}
    runs = tuple(
        replace(run, mask_of=names[takes[run.arm]], weights_of=names["dense"], weights_step=2)
        if run.arm in takes
        else run
        for run in plan.runs
    )
    plan = replace(plan, runs=runs)
    arrays = PLACE.jobs(study, plan, runs, ())[:-1]
    assert [array.runs for array in arrays] == [
        (names["dense"],),
        (names["first"],),
        (names["second"], names["random"]),
    ]
    assert [array.after for array in arrays] == [(), ("JOB1",), ("JOB1", "JOB2")]
    write_plan(study, plan)
    assert slurm_task.main(["begin", str(study), "2"]) == 64
    failure = json.loads(failure_file(study, plan.runs[2]).read_text())
    assert failure["reason"] == "needs dense/seed0, which is not done"
