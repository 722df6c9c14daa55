"""The smallest study: as it stands, with all that it offers, and some of its arms alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from sparsecl.errors import UserError
from sparsecl.experiments.study.build_plan import make_plan
from sparsecl.experiments.study.study_file import StudyConfig, read_study
from sparsecl.experiments.study.trials import check_tune
from sparsecl.programs.sweep import only, parse
from tests.experiments.study.test_sizes import fake_price

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = ROOT / "launch" / "experiments" / "template.yaml"


def planned(path: Path):
    study = replace(read_study(path), ds_config=ROOT / "ds_configs" / "zero2.json")
    return study, make_plan(study, fake_price, threads=1, command=[])[0]


def test_it_is_a_study_of_two_arms():
    _, plan = planned(TEMPLATE)
    assert [arm.name for arm in plan.arms] == ["dense", "sparse"] and len(plan.runs) == 6


def test_what_it_offers_can_be_uncommented(tmp_path):
    lines = TEMPLATE.read_text().splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("# orders:"))
    offered = [line.removeprefix("# ") if n >= begin else line for n, line in enumerate(lines)]
    offered = [line for line in offered if "equal_parameters" not in line]  # needs a real price
    path = tmp_path / "study.yaml"
    path.write_text("\n".join([*offered, "controls: {stopped_early: [sparse]}"]))
    study, plan = planned(path)
    check_tune(study)
    assert len(plan.orders) == 2 and len(plan.arms) == 3


def test_some_arms_alone_bring_what_they_need(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(TEMPLATE.read_text() + "controls: {stopped_early: [sparse]}\n")
    _, plan = planned(path)
    assert only(plan, None) is plan
    names = {run.arm for run in only(plan, ["dense"]).runs}
    assert names == {"dense"}
    assert only(plan, ["d*"]).runs == only(plan, ["dense"]).runs
    assert only(plan, ["*"]).runs == plan.runs
    needed = {run.name for run in only(plan, ["sparse.stopped_early"]).runs}
    assert needed == {
        f"{arm}/seed{seed}" for arm in ("sparse", "sparse.stopped_early") for seed in range(3)
    }
    with pytest.raises(UserError, match="--only spare: there is no such arm; there are dense, sp"):
        only(plan, ["sparse", "spare"])
    assert parse(["study.yaml", "--only", "dense,sparse"]).only == ["dense", "sparse"]


def test_every_key_of_a_study_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help_study"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for key in StudyConfig.__dataclass_fields__:
        assert f"\n{key}" in f"\n{text}", key
    assert "tune.on.order: one of given, reversed, interleaved or a list of text = required" in text
