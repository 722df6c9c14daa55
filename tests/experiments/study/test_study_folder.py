"""Links, pipes and folders in the place of what a study folder holds."""

import os
from pathlib import Path

import pytest

from sparsecl.errors import CannotCreateError
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.report import write_report
from sparsecl.experiments.running.slurm_task import begin
from sparsecl.experiments.study.build_plan import open_study
from sparsecl.experiments.study.study_plan import (
    PLAN,
    arm_config,
    check_study,
    failure_file,
    log_file,
)
from tests.experiments.fake_study import FakeArm, write_study

PLANTS = {
    "link": lambda path, victim: path.symlink_to(victim),
    "dangling": lambda path, victim: path.symlink_to(victim / "absent"),
    "pipe": lambda path, victim: os.mkfifo(path),
}


@pytest.mark.fault("F1", "F2")
@pytest.mark.parametrize("kind", list(PLANTS))
def test_nothing_of_a_study_is_followed(tmp_path, kind):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("precious")
    study = write_study(tmp_path / "study", [FakeArm(name="dense")], seeds=(0,))
    plan = collect(study).plan
    run = plan.runs[0]
    places = [
        *(failure_file(study, run), log_file(study, run), arm_config(study, "dense")),
        *(study / "runs" / "dense" / "seed0", study / "runs" / "dense", study / "runs"),
        *(study / name for name in ("report", "slurm", "slurm/jobs.json", "logs", "failures")),
        *(study / "configs", study / PLAN, study / "tuning", study / "tuning_wider"),
    ]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = tmp_path / "aside"
        if path.exists():
            path.rename(aside)
        PLANTS[kind](path, victim)
        for use in (check_study, lambda folder, plan: open_study(folder, plan, {})):
            with pytest.raises(CannotCreateError) as raised:
                use(study, plan)
            assert str(path) in str(raised.value)
        assert [child.name for child in victim.iterdir()] == ["precious"]
        path.unlink()
        if aside.exists():
            aside.rename(path)
    check_study(study, plan)
    assert open_study(study, plan, {}).runs == plan.runs


def test_a_task_of_a_job_is_not_begun_over_a_link(tmp_path):
    study = write_study(tmp_path / "study", [FakeArm(name="dense")], seeds=(0,))
    run = collect(study).plan.runs[0]
    victim: Path = tmp_path / "victim"
    victim.write_text("precious")
    log_file(study, run).parent.mkdir(exist_ok=True)
    log_file(study, run).symlink_to(victim)
    with pytest.raises(CannotCreateError, match="is a link"):
        begin(study, run)
    assert victim.read_text() == "precious"


def test_a_report_is_not_written_through_a_link(tmp_path):
    study = write_study(tmp_path / "study", [FakeArm(name="dense")], seeds=(0,))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("precious")
    (study / "report").symlink_to(tmp_path / "other")
    with pytest.raises(CannotCreateError, match="is not a report"):
        write_report(collect(study), study / "report")
    assert (tmp_path / "other" / "report.html").read_text() == "precious"
