"""Families made of the trials of a tuning: the planted worlds of a grid over the rate, tuned."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsecl.errors import DataError
from sparsecl.experiments.findings.collect import RunResult, Study, collect
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.frontier import families, family_contrasts
from sparsecl.experiments.findings.study_table import study_table
from sparsecl.experiments.findings.trends import trends
from sparsecl.experiments.findings.tuned import read_trials, trial_scores
from sparsecl.experiments.plots import style
from sparsecl.experiments.plots.frontier import frontier_figure
from sparsecl.experiments.plots.study import study_figures
from sparsecl.experiments.report import write_report
from sparsecl.experiments.study.measures import TEXT_MEASURES
from sparsecl.experiments.study.study_plan import AnalysisConfig, run_folder
from sparsecl.experiments.study.trials import trial_name
from sparsecl.experiments.study.tune import Trial, TuneConfig, TuneOn, Tuning, choose, points
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from tests.experiments.fake_study import (
    DOMAINS,
    FakeArm,
    last_forgetting,
    loss_matrix,
    scores,
    study_plan,
    write_study,
)
from tests.experiments.findings.test_frontier import CENTRE, RATES, grid, only

KEY = "optimizer.lr"
SEEDS = tuple(range(100, 108))
ORDER = (2, 0, 1)
WORLDS = 100
ROOM = 3 * 0.022
"""Three standard errors of a share near 0.95 of these."""


def tuned_study(folder, arms, *, more=None, wider=0, failed=None):
    """A study of these arms, its test and its trials, and what was taken by them.

    Args:
        arms: name -> FakeArms over RATES.
        more: other keys that are tuned, as TuneConfig.keys.
        wider: of the rates, how many were added by the widening.
        failed: names of trials -> seed that diverged.
    """
    keys = {KEY: RATES, **(more or {})}
    trials = trials_of(arms, keys)
    last = RATES[len(RATES) - wider :]
    failed = {(name, seed): "not finite" for name, seed in (failed or {}).items()}
    found = {}
    for where in ("tuning", "tuning_wider"):
        group = [arm for arm, v in trials if (v[KEY] in last) == (where == "tuning_wider")]
        if group:
            analysis = AnalysisConfig(reference=group[0].name, metrics=("final_loss",))
            place = folder / where
            write_study(place, group, seeds=SEEDS, order=ORDER, analysis=analysis, failed=failed)
            found.update(trial_scores(place))
    tuning = tuning_of(arms, keys, found)
    test = arms_at_taken(arms, tuning)
    analysis = AnalysisConfig(reference=test[0].name)
    write_study(folder, test, seeds=range(8), analysis=analysis, tuning=tuning)
    return folder


def trials_of(arms, keys):
    """Each trial with its values. Another value of a further key than its first is worse."""
    found = []
    for name, over_rates in arms.items():
        for values in points(keys):
            worse = 0.1 * sum(values[key] != keys[key][0] for key in keys if key != KEY)
            arm = over_rates[RATES.index(values[KEY])]
            name_of_it = trial_name(name, values)
            level, forgets = arm.level + worse, arm.forgets + worse
            arm = replace(arm, name=name_of_it, role="trial", level=level, forgets=forgets)
            found.append((arm, values))
    return found


def tuning_of(arms, keys, found):
    """What is taken by these scores, as launch/sweep.py takes it."""
    on = TuneOn(seeds=SEEDS, order=tuple(DOMAINS[i] for i in ORDER))
    base = {key: values[0] for key, values in keys.items()}
    chosen = []
    for name in arms:
        tried = [Trial(values=v, scores=found[trial_name(name, v)]) for v in points(keys)]
        chosen.append(choose(name, base, tried, "final_loss"))
    return Tuning(
        config=TuneConfig(keys=keys, on=on),
        keys=keys,
        runs=len(found) * len(SEEDS),
        arms=tuple(chosen),
    )


def arms_at_taken(arms, tuning):
    """The arms of the test at the rates that were taken."""
    rates = {one.arm: one.taken[KEY] for one in tuning.arms}
    return [
        replace(over_rates[RATES.index(rates[name])], name=name, differences=None, levels={})
        for name, over_rates in arms.items()
    ]


def world(number, **second):
    """A study and its trials without files; what is planted is in the second arm."""
    arms, keys = {"dense": grid("dense"), "sparse": grid("0.1", **second)}, {KEY: RATES}
    trials = [arm for arm, _ in trials_of(arms, keys)]
    plan = study_plan(trials, SEEDS, len(ORDER), AnalysisConfig(reference=trials[0].name))
    by_name = {arm.name: arm for arm in trials}
    results = tuple(
        RunResult(
            run=run,
            folder=Path("none"),
            status="done",
            values=figures(loss_matrix(by_name[run.arm], ORDER, 3, 1000 * number + run.seed)),
        )
        for run in plan.runs
    )
    made = Study(folder=Path("none"), plan=plan, results=results)
    scores = {arm: tuple(made.values(arm, "final_loss").values()) for arm in by_name}
    tuning = tuning_of(arms, keys, scores)
    test = study_plan(arms_at_taken(arms, tuning), (0,), 3, AnalysisConfig(), tuning=tuning)
    return Study(folder=Path("none"), plan=test, results=()), made


def figures(loss):
    learned = [loss[phase + 1, i] for phase, i in enumerate(ORDER)]
    rises = [loss[-1, i] - loss[phase + 1, i] for phase, i in enumerate(ORDER[:-1])]
    return {
        "learned_loss": float(np.mean(learned)),
        "F_last": float(np.mean(rises)),
        "final_loss": float(loss[-1].mean()),
    }


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """Equal frontiers; the sparse arm needs 2.8 times the rate."""
    folder = tmp_path_factory.mktemp("trap") / "study"
    return tuned_study(folder, {"dense": grid("dense"), "sparse": grid("0.1", shift=1.5)}, wider=1)


def test_each_arm_is_a_family_of_its_trials(trap):
    study = collect(trap)
    dense, sparse = families(study)
    assert (dense.name, sparse.name) == ("dense", "sparse")
    assert (dense.reference, sparse.reference) == (True, False)
    assert dense.rates == sparse.rates == RATES
    assert list(dense.frontiers) == list(sparse.frontiers) == list(SEEDS)
    assert len(dense.points) == len(SEEDS) * len(RATES)
    assert dense.arm(CENTRE) == "dense.optimizer.lr_0.004"
    # The points are those of the trials, also of those that widened the grid.
    for point in (*dense.points[:2], *dense.points[-2:]):
        where = "tuning_wider" if point.rate == RATES[-1] else "tuning"
        run = trap / where / "runs" / dense.arm(point.rate) / f"seed{point.seed}"
        order, loss = scores(run)
        learned = np.mean([loss[phase + 1, i] for phase, i in enumerate(order)])
        assert tuple(order) == ORDER
        assert point.learned == pytest.approx(learned)
        assert point.forgotten == pytest.approx(last_forgetting(run))


def test_the_rate_taken_stands_for_the_family_and_no_best_one(trap):
    study = collect(trap)
    for family, one in zip(families(study), study.plan.tuning.arms, strict=True):
        assert family.best is None and family.chosen == family.taken == one.taken[KEY]
    dense, sparse = families(study)
    assert dense.taken < sparse.taken
    found = family_contrasts(study, [dense, sparse])
    assert {one.at for one in found} == {"equal loss", "one rate"}
    assert len(found) == 1 + len(RATES)


def test_equal_frontiers_are_equal_at_equal_loss_and_different_at_one_rate(trap):
    study = collect(trap)
    found = family_contrasts(study, families(study))
    equal = only(found, "equal loss")
    assert equal.test.paired and equal.test.num_seeds == 8
    # One interval in twenty misses 0; how often they hold it is tested below.
    assert abs(equal.test.mean) < 0.02 and equal.test.equivalence.inside
    at_one = [one for one in found if one.at == "one rate"]
    assert [one.rates for one in at_one] == [(rate, rate) for rate in RATES]
    assert all(one.test.mean == pytest.approx(-0.75, abs=0.05) for one in at_one)
    assert all(one.adjusted <= 0.05 for one in at_one)


@pytest.mark.parametrize("effect", [0.0, -0.2])
def test_intervals_at_equal_loss_hold_what_is_planted_as_often_as_they_say(effect):
    means, held, differ = [], 0, 0
    for number in range(WORLDS):
        study, trials = world(number, shift=1.5, effect=effect)
        found = families(study, trials)
        assert found[0].taken < found[1].taken
        equal = only(family_contrasts(study, found), "equal loss")
        means.append(equal.test.mean)
        held += equal.test.t.contains(effect)
        differ += equal.adjusted <= 0.05
    assert held / WORLDS >= 0.95 - ROOM
    assert np.mean(means) == pytest.approx(effect, abs=0.003)
    assert differ == WORLDS if effect else differ / WORLDS <= 0.05 + ROOM


def test_a_planted_effect_is_found_at_equal_loss(tmp_path):
    arms = {"dense": grid("dense"), "sparse": grid("0.1", shift=1.5, effect=-0.2)}
    study = collect(tuned_study(tmp_path / "s", arms))
    equal = only(family_contrasts(study, families(study)), "equal loss")
    assert equal.test.mean == pytest.approx(-0.2, abs=0.02) and equal.adjusted <= 0.05
    assert "sparse minus dense, F_last at equal learned loss: -0." in " ".join(
        study_table(study).split()
    )
    assert "over learning rates, trials of the tuning (not planned):" in study_table(study)


def test_trials_are_compared_at_equal_movement_too(tmp_path):
    arms = {"dense": grid("dense", less=1.0), "sparse": grid("0.1", less=0.5)}
    study = collect(tuned_study(tmp_path / "s", arms))
    found = family_contrasts(study, families(study))
    # As much is forgotten at each rate, for half of the movement: a factor of 2 is 0.5 nats.
    assert only(found, "equal KL").test.mean == pytest.approx(0.5, abs=0.03)
    assert {one.at for one in found} == {"equal loss", "equal KL", "one rate"}


def test_other_tuned_keys_stand_at_what_was_taken(tmp_path):
    arms = {"dense": grid("dense"), "sparse": grid("0.1", shift=1.5)}
    study = collect(tuned_study(tmp_path / "s", arms, more={"optimizer.weight_decay": (0.0, 0.1)}))
    dense, sparse = families(study)
    assert dense.arms == tuple(
        f"dense.optimizer.lr_{rate}-optimizer.weight_decay_0.0" for rate in RATES
    )
    equal = only(family_contrasts(study, [dense, sparse]), "equal loss")
    assert abs(equal.test.mean) < 0.02


def test_a_tuning_of_another_key_makes_no_family(trap):
    study = collect(trap)
    tuning = replace(
        study.plan.tuning,
        keys={"optimizer.weight_decay": (0.0, 0.1)},
        arms=(),
    )
    study = replace(study, plan=replace(study.plan, tuning=tuning))
    assert families(study) == [] and family_contrasts(study, []) == []


def test_a_trial_that_diverged_is_no_point(tmp_path):
    arms = {"dense": grid("dense"), "sparse": grid("0.1", shift=1.5)}
    failed = {f"sparse.{KEY}_0.016": 103}
    study = collect(tuned_study(tmp_path / "s", arms, failed=failed))
    dense, sparse = families(study)
    assert len(dense.points) == 40 and len(sparse.points) == 39
    assert len(sparse.frontiers) == 8 and sparse.taken != 0.016


def test_trials_without_forgetting_are_no_points(tmp_path, monkeypatch):
    """One domain in the order of the tuning."""
    monkeypatch.setattr("tests.experiments.findings.test_frontier_trials.ORDER", (2,))
    study = collect(tuned_study(tmp_path / "s", {"dense": grid("dense"), "sparse": grid("0.1")}))
    found = families(study)
    assert [family.points for family in found] == [(), ()] and frontier_figure(found) is None
    equal = only(family_contrasts(study, found), "equal loss")
    assert equal.test is None and equal.why


def test_several_sizes_have_a_reference_each(tmp_path):
    arms = {"s-dense": grid("dense"), "s-sparse": grid("0.1"), "m-dense": grid("dense")}
    arms["m-sparse"] = grid("0.1", effect=-0.2)
    study = collect(tuned_study(tmp_path / "s", arms))

    def sized(plan):
        return replace(
            plan, arms=tuple(replace(arm, size=arm.name.partition("-")[0]) for arm in plan.arms)
        )

    trials = read_trials(study)
    study = replace(study, plan=sized(study.plan))
    found = families(study, replace(trials, plan=sized(trials.plan)))
    assert [family.reference for family in found] == [True, False, True, False]
    equal = [one for one in family_contrasts(study, found) if one.at == "equal loss"]
    assert [(one.family, one.against) for one in equal] == [
        ("s-sparse", "s-dense"),
        ("m-sparse", "m-dense"),
    ]
    assert [one.test.mean for one in equal] == pytest.approx([0.0, -0.2], abs=0.02)
    assert len(frontier_figure(found).axes) == 2


def test_the_rate_taken_is_ringed_on_its_curve(trap):
    study = collect(trap)
    found = families(study)
    named = [replace(family, label=f"label of {family.name}") for family in found]
    (axes,) = frontier_figure(named).axes
    rings = [line for line in axes.lines if line.get_markersize() == 13]
    for family, ring in zip(found, rings, strict=True):
        at = [(p.learned, p.forgotten) for p in family.points if p.rate == family.taken]
        assert np.allclose(np.ravel(ring.get_data()), np.mean(at, axis=0))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["label of dense", "label of sparse"]
    figures = study_figures(study, compare(study), trends(study))
    (caption,) = (one.caption for one in figures if one.name == "frontier")
    assert "trials of the tuning, no run of the test" in caption
    assert "ringed: taken for the test" in caption


def table(page, name):
    with (page.parent / "tables" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(style, "DPI", 30)
    monkeypatch.setattr(style, "PDF_FONT", 3)  # subsets of TrueType fonts take half of the time


def test_the_report_says_where_the_points_come_from_and_has_them(trap, tmp_path, quick):
    study = collect(trap)
    page = write_report(study, tmp_path / "report")
    text = page.read_text()
    assert 'id="figure-frontier"' in text
    assert "in the order legal, code, math. No run of the test is among them. 80 of 80" in text
    assert "Best rates were chosen" not in text and "Best rate:" not in text
    dense, sparse = table(page, "families")
    taken = [one.taken[KEY] for one in study.plan.tuning.arms]
    assert [float(row["taken"]) for row in (dense, sparse)] == taken
    assert dense["best"] == sparse["best"] == ""
    found = family_contrasts(study, families(study))
    rows = table(page, "frontier")
    assert len(rows) == len(found)
    for row, one in zip(rows, found, strict=True):
        assert float(row["difference"]) == pytest.approx(one.test.mean)
        assert float(row["low"]) == pytest.approx(one.test.t.low)
    rows = table(page, "trials")
    assert len(rows) == 2 * len(RATES) * len(SEEDS)
    by_run = {(row["arm"], float(row[KEY]), int(row["seed"])): row for row in rows}
    for family in families(study):
        for point in family.points:  # to the last bit
            row = by_run[family.name, point.rate, point.seed]
            assert row["status"] == "done"
            assert float(row["learned_loss"]) == point.learned
            assert float(row["F_last"]) == point.forgotten
    assert list(rows[0]) == ["arm", KEY, "seed", "status", *TEXT_MEASURES]


def test_the_table_of_runs_has_all_that_its_contrasts_are_made_of(trap, tmp_path, quick):
    study = collect(trap)
    (run_folder(trap, study.plan.runs[-1]) / "results.json").rename(tmp_path / "aside")
    try:
        study = collect(trap)
        page = write_report(study, tmp_path / "report")
    finally:
        (tmp_path / "aside").rename(run_folder(trap, study.plan.runs[-1]) / "results.json")
    rows = table(page, "seeds")
    assert [row["status"] for row in rows] == ["done"] * 15 + ["begun"]
    assert not any(rows[-1][name] for name in TEXT_MEASURES)
    for row in rows[:-1]:
        run = trap / "runs" / row["arm"] / f"seed{row['seed']}"
        assert float(row["F_last"]) == summarize(read_records(run))["forgetting"]["F_last"]
        shares = [float(row[f"NF_{name}"]) for name in DOMAINS if row[f"NF_{name}"]]
        assert float(row["NF"]) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("gone", ["folders", "runs"])
def test_a_study_whose_trials_are_gone_has_a_report_that_says_so(tmp_path, quick, gone):
    arms = {"dense": grid("dense"), "sparse": grid("0.1", shift=1.5)}
    folder = tuned_study(tmp_path / "s", arms, wider=1)
    for name in ("tuning", "tuning_wider"):
        shutil.rmtree(folder / name / ("runs" if gone == "runs" else ""))
    shutil.rmtree(folder / "runs")  # only plan.json and what was published are kept
    study = collect(folder)
    assert families(study) == []
    text = write_report(study, tmp_path / "report").read_text()
    assert "0 of their 80 runs are in the study folder, so there is none here" in text
    assert 'id="figure-frontier"' not in text and 'id="figure-tuning"' in text


def test_trials_that_are_there_in_part_are_counted(tmp_path, quick):
    arms = {"dense": grid("dense"), "sparse": grid("0.1", shift=1.5)}
    folder = tuned_study(tmp_path / "s", arms, wider=1)
    shutil.rmtree(folder / "tuning_wider")
    study = collect(folder)
    assert [family.rates for family in families(study)] == [RATES[:-1]] * 2
    page = write_report(study, tmp_path / "report")
    assert "64 of 80 trial runs are done" in page.read_text()
    missing = [float(row[KEY]) for row in table(page, "trials") if row["status"] == "missing"]
    assert missing == [RATES[-1]] * 16


def test_trials_are_read_with_the_checks_of_all_runs(tmp_path):
    folder = tuned_study(tmp_path / "s", {"dense": grid("dense"), "sparse": grid("0.1")})
    records = next((folder / "tuning" / "runs").glob("*/seed100")) / "scalars.jsonl"
    records.write_text(records.read_text().replace('"phase_end"', '"phase_start"', 1))
    with pytest.raises(DataError, match="seed100"):
        families(collect(folder))


def test_the_family_of_a_labelled_arm_has_its_label(tmp_path):
    arms = {"dense": grid("dense"), "sparse": grid("0.1")}
    study = collect(tuned_study(tmp_path / "s", arms))
    labelled = tuple(replace(arm, label=f"the {arm.name} one") for arm in study.plan.arms)
    study = replace(study, plan=replace(study.plan, arms=labelled))
    assert [family.label for family in families(study)] == ["the dense one", "the sparse one"]
    assert [family.name for family in families(study)] == ["dense", "sparse"]


def test_a_study_that_is_not_tuned_has_no_trials(tmp_path):
    arms = [FakeArm(name="dense", kind="dense"), FakeArm(name="er")]
    assert read_trials(collect(write_study(tmp_path / "s", arms, seeds=range(2)))) is None
