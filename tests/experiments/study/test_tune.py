"""The tune block: what it refuses, which trials it makes, and which value it takes."""

import hashlib
import json
import re
from dataclasses import replace

import pytest

from sparsecl.config import digest
from sparsecl.errors import UserError
from sparsecl.experiments.study.study_file import read_study
from sparsecl.experiments.study.trials import check_tune, trials_plan, tuning_text
from sparsecl.experiments.study.tune import (
    Trial,
    TunedArm,
    Tuning,
    choose,
    edges_of,
    points,
    widen,
    with_values,
)
from tests.experiments.fake_tuning import (
    EWC,
    GRID,
    RISING,
    ROOT,
    STRENGTHS,
    planned,
    price,
    study_file,
)


def trials_of(path, **options):
    study, plan, _ = planned(path, **options)
    made = trials_plan(study, price, study.config.tune.keys, threads=1, command=["x"])
    return study, plan, *made


def test_the_trials_see_no_seed_and_no_order_of_the_test(tmp_path):
    _, test, trials, configs = trials_of(study_file(tmp_path))
    assert {run.seed for run in test.runs} == {0, 1}
    assert {run.seed for run in trials.runs} == {7, 8, 9}
    assert {config.seed for config in configs.values()} == {7}  # the first; --set gives the others
    assert {config.phases.order for config in configs.values()} == {("b", "a")}
    assert trials.analysis.metrics == ("final_loss",) and trials.contrasts() == ()


def test_every_arm_gets_every_point_on_every_seed(tmp_path):
    path = study_file(tmp_path, "", (GRID, f"{RISING}, optimizer.weight_decay: [0.05, 0.1]"))
    study, test, trials, configs = trials_of(path)
    for arm in ("dense", "sparse"):
        mine = [run for run in trials.runs if run.arm.startswith(f"{arm}.")]
        assert len(mine) == 3 * 2 * 3
        found = {
            (c.optimizer.lr, c.optimizer.weight_decay)
            for name, c in configs.items()
            if name.startswith(f"{arm}.")
        }
        assert found == {(lr, decay) for lr in (0.001, 0.002, 0.004) for decay in (0.05, 0.1)}
    text = tuning_text(study, trials, test)
    assert "6 trials of each of 2 arms x 3 seeds = 36 runs, 72,000 tokens, 4.320e+08 FLOPs" in text
    assert "test: 4 runs, 8,000 tokens" in text


def test_a_key_of_a_method_is_tried_by_the_arms_that_have_the_method(tmp_path):
    path = study_file(tmp_path, "", (GRID, STRENGTHS), EWC)
    study, test, trials, configs = trials_of(path)
    tried = {
        arm: {
            (config.optimizer.lr, config.methods.ewc and config.methods.ewc.strength)
            for name, config in configs.items()
            if name.startswith(f"{arm}.")
        }
        for arm in ("dense", "sparse", "ewc")
    }
    rates = (0.001, 0.002, 0.004)
    assert tried["dense"] == tried["sparse"] == {(lr, None) for lr in rates}
    assert tried["ewc"] == {(lr, strength) for lr in rates for strength in (1.0, 10.0)}
    text = tuning_text(study, trials, test)
    assert "3 to 6 trials of each of 3 arms x 3 seeds = 36 runs" in text


def test_no_trial_of_a_widened_grid_is_made_twice(tmp_path):
    study, _, _ = planned(study_file(tmp_path, "", (GRID, STRENGTHS), EWC))
    known = study.config.tune.keys
    grid = {**known, "methods.ewc.strength": (1.0, 10.0, 100.0)}
    plan, _ = trials_plan(study, price, grid, known=known, threads=1, command=["x"])
    assert {arm.name for arm in plan.arms} == {
        f"ewc.optimizer.lr_{rate}-methods.ewc.strength_100.0" for rate in (0.001, 0.002, 0.004)
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [7, 8, 9]", "seeds: [7, 1]", "tune.on.seeds: 1 is a seed of the test too"),
        ("seeds: [7, 8, 9]", "seeds: [7, 7]", "tune.on: seeds must be .*distinct|seeds must be"),
        ("order: [b, a]", "order: [a, b]", "tune.on.order: is an order in which dense is tested"),
        ("order: [b, a]", "order: [b, c]", "tune.on.order: there is no domain c; there are a, b"),
        (", order: [b, a]", "", "tune.on.order: is required"),
        (GRID, "optimizer.lrr: [1, 2]", "tune.keys.optimizer.lrr: unknown key; did you mean"),
        (GRID, "optimizer.lr: [1.0e-3]", "keys.optimizer.lr must be at least two values"),
        (GRID, "optimizer.lr: [2.0e-3, 1.0e-3]", "each larger than the one before"),
        (GRID, "optimizer.lr: [-1.0, 1.0e-3]", "tune.keys.optimizer.lr: .*must be > 0"),
        (GRID, "batch.sequences: [8, 16]", "tune.keys.batch.sequences: decides what a run reads"),
        (GRID, "phases.steps: [8, 16]", "tune.keys.phases.steps: decides what a run reads"),
        (GRID, "seed: [8, 16]", "tune.keys.seed: decides what a run reads"),
        (GRID, "methods.ewc.strength: [1.0, 2.0]", "no arm has this method"),
        (GRID, "methods.ewc.strengt: [1.0, 2.0]", "methods.ewc.strengt: unknown key; did you mean"),
        (GRID, "topology.drop: [1, 2]", "tune.keys.topology.drop: unknown key"),
        (GRID, "", "keys is empty"),
        ("[b, a]}", "[b, a]}\n  by: F_first", "by: there is no measure F_first"),
        ("[b, a]}", "[b, a]}\n  budget: more", "tune.budget: expected one of equal"),
        ("{density: 0.25}}", "{density: 0.25}}\n  twin: {topology: {density: 0.25}, optimizer: "
         "{lr: 1.0e-3}}", "tune.keys: twin differs from sparse in nothing but optimizer.lr"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message) as raised:
        planned(study_file(tmp_path, "", (old, new)))
    assert "\n" not in str(raised.value)


def test_more_seeds_from_the_command_line_may_not_reach_those_of_the_tuning(tmp_path):
    with pytest.raises(UserError, match=r"tune\.on\.seeds: 7 is a seed of the test too"):
        planned(study_file(tmp_path), seeds=8)


def test_an_arm_that_is_tested_in_the_order_of_the_tuning_is_refused(tmp_path):
    more = "  turned: {topology: {density: 0.25}, phases: {order: [b, a]}}\n"
    path = study_file(tmp_path, "", ("tune:\n", f"{more}tune:\n"))
    with pytest.raises(UserError, match="is an order in which turned is tested"):
        planned(path)


def test_a_scale_may_have_a_grid_of_its_own(tmp_path):
    tune = "tune: {keys: {optimizer.lr: [1.0e-4, 2.0e-4]}, on: {seeds: [9], order: [b, a]}}"
    path = study_file(tmp_path, f"scales: {{small: {{}}, large: {{{tune}}}}}\n")
    assert len(planned(path)[0].config.tune.keys["optimizer.lr"]) == 5
    assert planned(path, scale="large")[0].config.tune.keys == {"optimizer.lr": (1e-4, 2e-4)}


def trials(*scores, key="lr"):
    return [Trial(values={key: 2.0**place}, scores=each) for place, each in enumerate(scores)]


@pytest.mark.parametrize(
    ("by", "scores", "base", "taken", "ties"),
    [
        # Clear: every seed agrees.
        ("final_loss", [(3.0, 4.0), (2.0, 3.0), (2.5, 3.5)], 1.0, 2.0, []),
        ("final_accuracy", [(0.3, 0.4), (0.2, 0.3), (0.5, 0.6)], 1.0, 4.0, []),
        # The seeds disagree about the first two: the one nearer to the base, which is the worse.
        ("final_loss", [(2.0, 3.1), (2.1, 2.9), (4.0, 4.0)], 1.0, 1.0, [1.0]),
        ("final_loss", [(2.0, 3.1), (2.1, 2.9), (4.0, 4.0)], 4.0, 2.0, [1.0]),
        # Equally far from the base: the smaller.
        ("final_loss", [(2.0, 3.0), (9.0, 9.0), (2.0, 3.0)], 2.0, 1.0, [4.0]),
        # One seed knows no error: the best mean, were it by a hair.
        ("final_loss", [(2.0,), (1.9999,), (3.0,)], 1.0, 2.0, []),
        # What diverged is not chosen, were it the best on the other seed.
        ("final_loss", [(3.0, 3.0), (2.5, 2.5), (1.0, None)], 1.0, 2.0, []),
    ],
)
def test_which_value_is_taken(by, scores, base, taken, ties):
    found = choose("arm", {"lr": base}, trials(*scores), by)
    assert found.taken == {"lr": taken}
    assert [tie["lr"] for tie in found.ties] == ties
    assert len(found.trials) == len(scores)


def test_a_curve_without_a_value_is_an_error():
    with pytest.raises(UserError, match="tune: arm: no value of the grid has a final_loss on ever"):
        choose("arm", {"lr": 1.0}, trials((None, 1.0), (2.0, None)), "final_loss")


def test_the_grid_goes_on_by_its_last_ratio_at_the_ends_that_an_arm_wants():
    grid = {"lr": (1.0, 2.0, 4.0), "decay": (0.0, 0.1, 0.3)}

    def arm(name, best):
        one = choose(name, {"lr": 1.0, "decay": 0.1}, [
            Trial(values=v, scores=(0.0 if v == best else 1.0,)) for v in points(grid)
        ], "final_loss")  # fmt: skip
        return replace(one, edges=edges_of(one, grid))

    inside = arm("inside", {"lr": 2.0, "decay": 0.1})
    assert inside.edges == {} and widen(grid, [inside], lambda v: "")[0] == grid
    high, low = arm("high", {"lr": 4.0, "decay": 0.3}), arm("low", {"lr": 1.0, "decay": 0.0})
    assert high.edges == {"lr": "highest", "decay": "highest"}
    wider, notes = widen(grid, [inside, high, low], lambda values: "")
    assert wider == {"lr": (0.5, 1.0, 2.0, 4.0, 8.0), "decay": (0.0, 0.1, 0.3, 0.9)}
    assert "decay: at the lowest value for low; the grid cannot be widened there" in notes[2]
    refused, notes = widen(grid, [high], lambda values: "too much" if values["lr"] > 4 else "")
    assert refused["lr"] == grid["lr"] and "(too much)" in notes[0]


def test_controls_have_the_tuned_values_of_what_they_are_made_of(tmp_path):
    controls = "controls: {stopped_early: [sparse], update_only: [sparse], alone: [sparse]}\n"
    path = study_file(tmp_path, controls)
    study, before, _ = planned(path)
    tuning = Tuning(
        config=study.config.tune,
        keys=study.config.tune.keys,
        arms=(
            TunedArm(arm="dense", taken={"optimizer.lr": 0.002}),
            TunedArm(arm="sparse", taken={"optimizer.lr": 0.016}),
        ),
    )
    _, plan, configs = planned(path, tuning)
    rates = {name: config.optimizer.lr for name, config in configs.items()}
    assert rates == {
        "dense": 0.002,
        "sparse": 0.016,
        "sparse.stopped_early": 0.002,  # the reference, cut short
        "sparse.update_only": 0.016,
        "sparse.alone.a": 0.016,
        "sparse.alone.b": 0.016,
    }
    assert plan.digest == before.digest  # the folder's name is known before the values are
    assert "optimizer.lr: 0.002 -> 0.016" in plan.arm("sparse").differences


def test_a_value_reaches_its_key_and_nothing_else(tmp_path):
    study, _, _ = planned(study_file(tmp_path))
    config = study.settings[0].config
    found = with_values(config, {"optimizer.lr": 0.5})
    assert found == replace(config, optimizer=replace(config.optimizer, lr=0.5))


def test_a_study_without_a_tune_block_has_the_digest_that_it_had(tmp_path):
    """By the rule of the time before studies could be tuned."""
    path = tmp_path / "plain.yaml"
    path.write_text(study_file(tmp_path).read_text().partition("tune:")[0])
    study, plan, arms = planned(path)
    parts = {
        "arms": {name: digest(config) for name, config in arms.items()},
        "seeds": [0, 1],
        "ds_config": study.ds_config.read_text(),
    }
    text = json.dumps(parts, sort_keys=True)
    assert plan.digest == hashlib.sha256(text.encode()).hexdigest() and plan.tuning is None


def test_the_block_of_the_studies_page_tunes_the_first_experiment(tmp_path):
    page = (ROOT / "launch" / "experiments" / "README.md").read_text()
    (block,) = re.findall(r"^```yaml\n(tune:\n.*?)^```", page, re.DOTALL | re.MULTILINE)
    path = tmp_path / "study.yaml"
    exp1 = (ROOT / "launch" / "experiments" / "exp1_density.yaml").read_text()
    without = re.sub(r"^    tune:.*\n(      .*\n)+", "", exp1, flags=re.MULTILINE)
    assert "tune:" not in without
    path.write_text(without + block)
    study = read_study(path)
    check_tune(study)
    assert len(points(study.config.tune.keys)) == 4 and study.config.tune.by == "final_loss"


def test_every_arm_of_every_size_is_tuned(tmp_path):
    sizes = "scales: {both: {sizes: {small: {model: {width: 16}}, large: {}}}}\n"
    study, _, trials, configs = trials_of(study_file(tmp_path, sizes))
    assert len(trials.arms) == 2 * 2 * 5 and trials.sizes() == ("small", "large")
    assert configs["small-sparse.optimizer.lr_0.002"].model.width == 16
    assert {trials.reference_of(arm) for arm in trials.arms} == {
        "small-dense.optimizer.lr_0.001",
        "large-dense.optimizer.lr_0.001",
    }
