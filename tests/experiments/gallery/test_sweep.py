"""launch/sweep.py in a planted world: its own runs are processes, its training is fake_train.py.

The grid of the rates is too short, so it is widened. What each process was given is in its folder.
"""

import csv
import json
from pathlib import Path

import pytest
import yaml

from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.report import answer, write
from sparsecl.experiments.running import runner
from sparsecl.experiments.study.study_plan import read_plan
from sparsecl.programs import sweep
from tests.experiments.gallery.pipeline import KEY, study_file
from tests.experiments.gallery.test_numbers import contrast_numbers, differences, numbers

ROOT = Path(__file__).resolve().parents[3]
TRAIN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.experiments.gallery.fake_train import main
sys.exit(main("Topology", 0))
"""
SEEDS = (0, 1, 2, 3, 4, 5)
TUNED_ON = (100, 101, 102)
TUNED_IN = ("b", "a", "c")
TESTED_IN = {"forth": ("a", "b", "c"), "back": ("c", "b", "a")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The study folder, with its report but for the figures."""
    place = tmp_path_factory.mktemp("swept")
    path = study_file(place, cycles=1, rates=(2e-3, 4e-3), seeds=SEEDS, tuning_seeds=TUNED_ON)
    (place / "train.py").write_text(TRAIN)
    folder = place / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "TRAIN", place / "train.py")
        patch.setattr(sweep, "prepare_data", lambda *_: None)
        patch.setattr(runner, "TICK", 0.005)
        patch.setattr(write, "figures_of", lambda *_: [])
        assert sweep.main([str(path), "--study_dir", str(folder), "--jobs", "2"]) == 0
    return folder


def given(folder):
    """What every run of a folder was given."""
    return [json.loads(path.read_text()) for path in folder.glob("runs/*/*/given.json")]


def test_tuning_sees_no_seed_and_no_order_of_the_test(swept):
    plan = read_plan(swept)
    assert plan.tuning is not None and plan.seeds == SEEDS and plan.orders == TESTED_IN
    for name in ("tuning", "tuning_wider"):
        trials, runs = read_plan(swept / name), given(swept / name)
        assert {run.seed for run in trials.runs} == set(TUNED_ON) == {one["seed"] for one in runs}
        assert {run.order for run in trials.runs} == {""}
        assert {tuple(one["order"]) for one in runs} == {TUNED_IN}
        assert not any("phases.order" in text for one in runs for text in one["set"])
        for path in (swept / name / "configs").iterdir():
            config = yaml.safe_load(path.read_text())
            assert config["seed"] in TUNED_ON and tuple(config["phases"]["order"]) == TUNED_IN
    assert plan.tuning.config.on.seeds == TUNED_ON and plan.tuning.config.on.domains == TUNED_IN


def test_the_test_runs_every_seed_in_every_order_at_the_frozen_rates(swept):
    plan, runs = read_plan(swept), given(swept)
    found = {(tuple(one["order"]), one["seed"]) for one in runs}
    assert found == {(order, seed) for order in TESTED_IN.values() for seed in SEEDS}
    assert len(runs) == 2 * 2 * len(SEEDS)
    for order, domains in TESTED_IN.items():
        for path in swept.glob(f"runs/*/{order}-seed*/given.json"):
            one = json.loads(path.read_text())
            assert f"phases.order=[{', '.join(domains)}]" in one["set"]
            assert f"seed={path.parts[-2].rpartition('seed')[2]}" in one["set"]
            assert one["rate"] == plan.tuning.taken(path.parts[-3])[KEY]


def test_every_arm_had_the_same_trials_also_beyond_the_grid(swept):
    plan = read_plan(swept)
    assert plan.tuning.keys == {KEY: (0.001, 0.002, 0.004)} and plan.tuning.added == {KEY: (0.001,)}
    assert [one.taken for one in plan.tuning.arms] == [{KEY: 0.002}] * 2
    tried = sorted((one["rate"], one["seed"]) for one in given(swept / "tuning"))
    wider = sorted((one["rate"], one["seed"]) for one in given(swept / "tuning_wider"))
    both = [rate for rate in (0.002, 0.004) for _ in range(6)]
    assert [rate for rate, _ in tried] == both and [rate for rate, _ in wider] == [0.001] * 6


def test_the_answer_of_the_report_is_the_truth_and_its_numbers_are_those_of_seeds_csv(swept):
    study = collect(swept)
    (contrast,) = compare(study).family("primary")
    sentence = answer.contrast_sentence(contrast)
    page = (swept / "report" / "report.html").read_text()
    assert sentence in page and sentence.endswith(": better.")
    assert contrast.test.t.low <= -0.3 <= contrast.test.t.high
    with open(swept / "report" / "tables" / "seeds.csv", newline="") as file:
        values = differences(list(csv.DictReader(file)), "sparse", "dense")
    assert numbers(sentence) == pytest.approx(contrast_numbers(values)[0], abs=5.1e-5)
