"""The report of a study of streams: numbers that were computed by hand, and what fails in it."""

import csv

import pytest

from sparsecl.errors import DataError
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.stream_curves import stream_curve
from sparsecl.experiments.findings.study_table import study_table
from sparsecl.experiments.plots import style
from sparsecl.experiments.report import write_report
from sparsecl.experiments.report.publish import publish
from sparsecl.experiments.running.runner import run_options, share_done
from sparsecl.experiments.study.study_plan import run_folder
from tests.experiments.fake_streams import make_plan, write_failure, write_run, write_study

SEEDS, TASKS = range(7), 12


def falling(seed, task):
    """0.8 in the first ten tasks, 0.5 in the last two; each seed has a hundredth more."""
    return (0.8 if task < 10 else 0.5) + seed / 100


def steady(seed, task):
    """0.1 better at the end, and not better before."""
    return (0.8 if task < 10 else 0.6) + seed / 100 + seed / 1000


def panel(seed, task):
    return 0.5 + task / 10 + seed / 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    plan = make_plan(("bp", "cbp", "late", "bad"), SEEDS, TASKS)
    write_study(folder, plan)
    write_run(folder, plan, plan.runs[0], falling, panel)
    write_run(folder, plan, plan.runs[1], steady, panel)
    write_run(folder, plan, plan.runs[2], steady, panel, done=False)
    write_failure(folder, plan.runs[3], "it broke")
    return folder


def test_the_measures_are_those_of_the_definitions(folder):
    study = collect(folder)
    # Best window: the first ten tasks. Last third: tasks 8 to 11, two at 0.8 and two at 0.5.
    expected = {
        "best_window": 0.8, "last_third": 0.65, "lost": 0.15, "accuracy": 0.75, "p": 0.325,
        "change_erank": 6.5, "dead": 1.7, "dormant": 1.7, "erank": 1.7, "stable_rank": 1.7,
        "srank99": 1.7, "weight_size": 1.7,
    }  # fmt: skip
    assert list(study.measures) == list(expected)
    for name, value in expected.items():
        step = {"lost": 0.0, "p": 0.005, "change_erank": 0.1}.get(name, 0.01)
        found = study.values("bp", name)
        assert found == pytest.approx({seed: value + step * seed for seed in SEEDS}), name
    assert study.counts() == {"done": 14, "failed": 7, "begun": 7, "missing": 0}


def test_contrasts_are_paired_by_seed_and_corrected_over_all_that_were_planned(folder):
    comparison = compare(collect(folder))
    cbp, late, bad = comparison.family("primary")
    # Half of 0.1, plus 0.001 for each seed: mean 0.05 + 0.003.
    assert cbp.pairs.differences == pytest.approx([0.05 + s / 1000 for s in SEEDS])
    assert cbp.test.mean == pytest.approx(0.053) and cbp.test.p == 2 / 2**7
    assert cbp.adjusted == pytest.approx(3 * 2 / 2**7) and cbp.improves and cbp.significant
    assert late.test.p is None and bad.test.p is None
    lost = comparison.family("secondary")[0]
    assert lost.test.mean == pytest.approx(-0.05) and lost.improves


def test_curves_are_averaged_over_windows_and_stand_at_their_middle(folder):
    study = collect(folder)
    curve = stream_curve(study, "bp", "learned")
    assert curve.x.tolist() == [2.0 + k for k in range(10)]  # three tasks, a quarter of twelve
    assert curve.mean[0] == pytest.approx(0.83) and curve.mean[-1] == pytest.approx(0.63)
    erank = stream_curve(study, "bp", "erank")
    assert erank.x.tolist() == list(range(13)) and erank.values.shape == (7, 13)
    assert erank.band is not None and stream_curve(study, "late", "erank") is None


def test_the_terminal_and_the_page_say_what_was_found(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "DPI", 30)
    study = collect(folder)
    text = study_table(study)
    assert "14 of 28 runs done, 7 failed, 7 begun" in text
    row = next(line for line in text.splitlines() if line.startswith("cbp"))
    assert row.split() == [
        "cbp", "7/7", "0.733", "[0.711,", "0.755]", "0.100", "1.730", "1.730", "1.730", "0.0469"
    ]  # fmt: skip
    assert text.count("it broke") == 1
    page = write_report(study, tmp_path / "report").read_text()
    assert "DeepSpeed" not in page and "equal_parameters" in page
    rows = list(csv.DictReader((tmp_path / "report/tables/figures.csv").open()))
    assert float(rows[0]["lost"]) == pytest.approx(0.15)
    assert rows[3]["lost"] == "" and (tmp_path / "report/figures/tasks.png").is_file()


def test_what_is_done_is_published_with_its_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "DPI", 30)
    plan = make_plan(("bp", "cbp"), SEEDS, TASKS)
    folder = write_study(tmp_path / "study", plan)
    for run, curve in zip(plan.runs, (falling, steady), strict=True):
        write_run(folder, plan, run, curve, panel)
    page = publish(collect(folder), tmp_path / "kept").read_text()
    assert "cbp better than bp" in page and "![Line: mean over seeds" in page
    assert (tmp_path / "kept/tables/seeds.csv").is_file()


def test_progress_is_the_share_of_tasks_that_are_written(folder):
    plan = collect(folder).plan
    done = [share_done(run_folder(folder, run)) for run in plan.runs]
    assert done == [1.0, 1.0, 0.5, 0.0]
    words = run_options(folder, plan, plan.runs[0])
    assert words == [f"{folder}/configs/bp.yaml", "--run_dir", f"{folder}/runs/bp/seeds"]


def test_a_run_of_other_seeds_is_not_taken(tmp_path):
    plan = make_plan(("bp",), SEEDS, TASKS)
    folder = write_study(tmp_path, plan)
    write_run(folder, plan, plan.runs[0], falling, panel)
    other = make_plan(("bp",), range(1, 8), TASKS)
    write_study(folder, other)
    with pytest.raises(DataError, match="has the seeds .* planned were"):
        collect(folder)
