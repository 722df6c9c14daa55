"""The report of a tuned study: curves and values as the runs of the tuning say."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.plots import style
from sparsecl.experiments.report import tuning, write_report
from sparsecl.experiments.study.study_plan import read_plan
from tests.experiments.fake_study import FakeArm, write_study
from tests.experiments.fake_tuning import EWC, GRID, RISING, STRENGTHS, study_file, sweep
from tests.experiments.running.test_tuning import last_losses


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("tuned")
    path = study_file(place, "labels: {sparse: '<b>25 %</b>'}\n", (GRID, RISING))
    assert sweep(path, place / "study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        page = write_report(collect(place / "study"), place / "study" / "report")
    return place / "study", page.read_text()


def table(folder, name):
    with open(folder / "report" / "tables" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_curves_are_those_of_the_runs(made):
    folder, page = made
    losses = {**last_losses(folder / "tuning"), **last_losses(folder / "tuning_wider")}
    rows = table(folder, "tuning")
    assert len(rows) == len(losses) == 8
    for row in rows:
        seen = losses[row["arm"], float(row["optimizer.lr"])]
        assert [float(row[f"seed{s}"]) for s in (7, 8, 9)] == pytest.approx(
            [seen[s] for s in (7, 8, 9)]
        )
        assert float(row["mean"]) == pytest.approx(np.mean(list(seen.values())))
    chosen = {(row["arm"], float(row["optimizer.lr"])) for row in rows if row["taken"]}
    assert chosen == {("dense", 0.002), ("sparse", 0.008)}
    assert 'id="figure-tuning"' in page and 'id="tuning"' in page


def test_every_run_of_the_tuning_is_there_to_the_last_bit(made):
    folder, _ = made
    losses = {**last_losses(folder / "tuning"), **last_losses(folder / "tuning_wider")}
    rows = table(folder, "trials")
    assert len(rows) == 8 * 3 and {row["status"] for row in rows} == {"done"}
    trials = {(row["arm"], row["optimizer.lr"]): row for row in table(folder, "tuning")}
    for row in rows:
        assert row["final_loss"] == trials[row["arm"], row["optimizer.lr"]][f"seed{row['seed']}"]
        seen = losses[row["arm"], float(row["optimizer.lr"])][int(row["seed"])]
        assert float(row["final_loss"]) == pytest.approx(seen)


def test_the_trials_are_the_frontier(made):
    folder, page = made
    assert "The points are trials of the tuning" in page and "24 of 24 trial runs are done" in page
    rows = table(folder, "families")
    assert [(row["family"], row["taken"], row["edge"]) for row in rows] == [
        ("dense", "0.002", "no"),
        ("sparse", "0.008", "yes"),
    ]


def test_what_was_taken_and_that_it_lies_at_the_end_is_said(made):
    folder, page = made
    dense, sparse = table(folder, "tuned")
    assert (dense["optimizer.lr_base"], dense["optimizer.lr_taken"]) == ("0.004", "0.002")
    assert (dense["optimizer.lr_edge"], sparse["optimizer.lr_edge"]) == ("", "highest")
    assert sparse["optimizer.lr_taken"] == sparse["optimizer.lr_best"] == "0.008"
    assert "At an end of the grid, though it was widened once" in page
    assert "at the highest value for sparse; 0.008 was tried too, by every arm" in page
    assert "Each arm got 4 trials, each on the seeds 7, 8, 9 in the order b, a" in page


def test_a_tie_names_what_was_as_good(made):
    folder, _ = made
    plan = read_plan(folder)
    one = replace(plan.tuning.arms[0], ties=({"optimizer.lr": 0.001}, {"optimizer.lr": 0.004}))
    found = tuning.taken_table(replace(plan.tuning, arms=(one,)))
    assert found.rows[0][-1] == "0.001; 0.004"


def test_a_study_that_is_not_tuned_has_no_such_section(tmp_path):
    study = write_study(tmp_path / "s", [FakeArm(name="dense"), FakeArm(name="er")], seeds=(0, 1))
    page = write_report(collect(study), study / "report").read_text()
    assert "Tuning before the test" not in page


def test_the_trials_have_a_report_of_their_own(made, monkeypatch):
    """As the report job of their array writes it."""
    monkeypatch.setattr(style, "DPI", 30)
    folder, _ = made
    page = write_report(collect(folder / "tuning"), folder / "tuning" / "report")
    assert "The plan has no contrast." in page.read_text()


def test_an_arm_with_a_method_shows_its_strength_and_the_others_show_none(tmp_path, monkeypatch):
    folder = tmp_path / "study"
    assert sweep(study_file(tmp_path, "", (GRID, STRENGTHS), EWC), folder)
    monkeypatch.setattr(style, "DPI", 30)
    page = write_report(collect(folder), folder / "report").read_text()
    strength = {row["arm"]: row["methods.ewc.strength_taken"] for row in table(folder, "tuned")}
    # The fake loss is the same at both strengths: the arm's own is taken.
    assert strength == {"dense": "", "sparse": "", "ewc": "10.0"}
    tried = [(row["arm"], row["methods.ewc.strength"]) for row in table(folder, "tuning")]
    assert {strength for arm, strength in tried if arm == "ewc"} >= {"1.0", "10.0"}
    assert {strength for arm, strength in tried if arm != "ewc"} == {""}
    families = {row["family"] for row in table(folder, "families")}
    assert families == {"dense", "sparse", "ewc"}
    assert "Each arm got 4 to " in page
