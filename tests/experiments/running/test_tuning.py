"""Tuning a study: fair, blind to the test, frozen once, the same however often it is stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from sparsecl.errors import MissingInputError, UserError
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.running.tuning import tuned_before
from sparsecl.experiments.study import build_plan
from sparsecl.experiments.study.build_plan import open_study
from sparsecl.experiments.study.study_plan import PLAN, read_plan
from tests.events import HANG, wait_for
from tests.experiments.fake_tuning import GRID, RISING, planned, study_file, sweep, tune_only
from tests.experiments.running.test_runner import read_now

SCRIPT = Path(__file__).parents[1] / "fake_tuning.py"


def last_losses(folder):
    """(arm, rate) -> {seed: mean of the last two losses}, from the lines of the runs alone."""
    found = {}
    for path in folder.glob("runs/*/seed*/scalars.jsonl"):
        given = json.loads((path.parent / "given.json").read_text())
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        losses = [e["loss_sum"] / e["num_tokens"] for e in lines if e["kind"] == "eval"][-2:]
        key = (path.parts[-3].partition(".")[0], given["config"]["optimizer"]["lr"])
        found.setdefault(key, {})[given["seed"]] = np.mean(losses)
    return found


def given(folder):
    """What each run was given, by its folder's name."""
    paths = sorted(folder.glob("runs/*/seed*/given.json"))
    return {path.parts[-3] + "/" + path.parts[-2]: json.loads(path.read_text()) for path in paths}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A study whose sparse arm has its best at the end of the grid; tuned and tested."""
    place = tmp_path_factory.mktemp("tuned")
    controls = "controls: {update_only: [sparse], stopped_early: [sparse]}\n"
    path = study_file(place, controls, (GRID, RISING))
    log = []
    assert sweep(path, place / "study", log)
    return path, place / "study", log


def test_tuning_sees_no_seed_and_no_order_of_the_test(tuned):
    _, folder, _ = tuned
    plan = read_plan(folder)
    test, trials = given(folder), {}
    for name in ("tuning", "tuning_wider"):
        trials.update(given(folder / name))
    assert {one["seed"] for one in trials.values()} == {7, 8, 9} == set(plan.tuning.config.on.seeds)
    assert {one["seed"] for one in test.values()} == {0, 1} == set(plan.seeds)
    assert {tuple(one["config"]["phases"]["order"]) for one in trials.values()} == {("b", "a")}
    assert {tuple(one["config"]["phases"]["order"]) for one in test.values()} == {()}  # a, b
    for name in ("tuning", "tuning_wider"):
        configs = [yaml.safe_load(path.read_text()) for path in folder.glob(f"{name}/configs/*")]
        assert configs and {config["seed"] for config in configs} == {7}
        assert {run.seed for run in read_plan(folder / name).runs} == {7, 8, 9}


def test_every_arm_has_as_many_trials_also_where_the_grid_was_widened(tuned):
    _, folder, log = tuned
    assert [name for name, _ in log] == ["tuning", "tuning_wider"]
    for _, runs in log:
        counts = {
            arm: sum(run.startswith(f"{arm}.") for run in runs) for arm in ("dense", "sparse")
        }
        assert counts["dense"] == counts["sparse"] > 0
    tuning = read_plan(folder).tuning
    assert tuning.keys == {"optimizer.lr": (0.001, 0.002, 0.004, 0.008)}
    assert tuning.added == {"optimizer.lr": (0.008,)}
    assert tuning.notes == (
        "optimizer.lr: at the highest value for sparse; 0.008 was tried too, by every arm",
    )
    assert tuning.runs == 2 * 4 * 3 and tuning.flops == tuning.tokens * 6000 == 24 * 2000 * 6000
    assert {len(one.trials) for one in tuning.arms} == {4}


def test_what_is_frozen_is_the_best_mean_and_what_the_test_is_run_with(tuned):
    _, folder, _ = tuned
    losses = {**last_losses(folder / "tuning"), **last_losses(folder / "tuning_wider")}
    plan = read_plan(folder)
    for one in plan.tuning.arms:
        means = {
            rate: np.mean(list(s.values())) for (arm, rate), s in losses.items() if arm == one.arm
        }
        best = min(means, key=means.get)
        assert one.taken == one.best == {"optimizer.lr": best} and one.ties == ()
        for trial in one.trials:
            seen = losses[one.arm, trial.values["optimizer.lr"]]
            assert trial.scores == pytest.approx([seen[seed] for seed in (7, 8, 9)])
            assert trial.mean == pytest.approx(means[trial.values["optimizer.lr"]])
            gaps = [seen[seed] - losses[one.arm, best][seed] for seed in (7, 8, 9)]
            assert trial.error == pytest.approx(np.std(gaps, ddof=1) / 3**0.5)
    assert [one.taken["optimizer.lr"] for one in plan.tuning.arms] == [0.002, 0.008]
    rates = {name: one["config"]["optimizer"]["lr"] for name, one in given(folder).items()}
    for seed in (0, 1):
        assert rates[f"dense/seed{seed}"] == rates[f"sparse.stopped_early/seed{seed}"] == 0.002
        assert rates[f"sparse/seed{seed}"] == rates[f"sparse.update_only/seed{seed}"] == 0.008


def test_the_end_that_is_still_the_best_is_named_and_not_left_again(tuned):
    _, folder, log = tuned
    edges = {one.arm: one.edges for one in read_plan(folder).tuning.arms}
    assert edges == {"dense": {}, "sparse": {"optimizer.lr": "highest"}} and len(log) == 2


def test_a_study_that_is_tuned_is_never_tuned_again(tuned, tmp_path):
    path, folder, _ = tuned
    before, log = (folder / PLAN).read_bytes(), []
    (folder / "tuning").rename(tmp_path / "aside")
    try:
        assert sweep(path, folder, log) and log == []
    finally:
        (tmp_path / "aside").rename(folder / "tuning")
    assert (folder / PLAN).read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (RISING, "optimizer.lr: [1.0e-3, 2.0e-3]", r"tune\.keys\.optimizer\.lr\.2: 0.004 -> "),
        ("seeds: [7, 8, 9]", "seeds: [7, 8]", r"tune\.on\.seeds\.2: 9 -> \(absent\)"),
        ("order: [b, a]}", "order: [b, a]}\n  by: F_last", r"tune\.by: .*final_loss.* -> .*F_last"),
        ("seeds: [0, 1]", "seeds: [0, 2]", r"seeds \(0, 1\) -> \(0, 2\)"),
    ],
)
def test_another_tune_block_is_another_study(tuned, tmp_path, old, new, message):
    path, folder, _ = tuned
    changed = tmp_path / "study.yaml"
    changed.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=f"holds another study .*{message}"):
        tune_only(changed, folder)


def test_a_tune_block_that_is_gone_or_new_is_another_study(tuned, tmp_path):
    path, folder, _ = tuned
    plain, other = tmp_path / "study.yaml", tmp_path / "plain"
    plain.write_text(path.read_text().partition("tune:")[0])
    _, plan, configs = planned(plain)
    with pytest.raises(UserError, match="its tune block is gone"):
        open_study(folder, plan, configs)
    other.mkdir()
    open_study(other, plan, configs)
    with pytest.raises(UserError, match="holds another study .*its tune block is new"):
        tune_only(path, other)


def test_a_study_may_not_change_while_it_is_tuned(tmp_path):
    path, folder = study_file(tmp_path), tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        tune_only(path, folder, place=Stops(after=3))
    with pytest.raises(MissingInputError, match="its tuning is not done, so it has no plan.json"):
        collect(folder)
    text = path.read_text()
    for old, new, message in (
        ("2.0e-3, ", "", r"arm dense\.optimizer\.lr_0\.002 is gone"),
        ("seeds: [7, 8, 9]", "seeds: [7, 8]", r"seeds \(7, 8, 9\) -> \(7, 8\)"),
        ("seeds: [0, 1]", "seeds: [0, 2]", "the study that is tuned differs"),
        ("arms:", "analysis: {alpha: 0.01}\narms:", "the study that is tuned differs"),
        ("arms:", "controls: {update_only: [sparse]}\narms:", "the study that is tuned differs"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=message):
            tune_only(path, folder)
    path.write_text(text.partition("tune:")[0])
    _, plan, configs = planned(path)
    with pytest.raises(UserError, match="its tune block is gone"):
        open_study(folder, plan, configs)
    path.write_text(text)
    assert tune_only(path, folder) is not None


class Stops:
    """A place that is stopped by Ctrl-C at a run."""

    slots = 1

    def __init__(self, after):
        from tests.experiments.fake_tuning import Here

        self.left, self.here = after, Here()

    def start(self, *words, **more):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.here.start(*words, **more)


def test_stopped_at_any_run_it_comes_to_the_same_plan(tuned, tmp_path):
    path, whole, _ = tuned
    folder, stops = tmp_path / "study", 0
    while True:  # at the grid, at what widens it, at the test
        try:
            assert sweep(path, folder, place=Stops(after=6))
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == (24 + 8 - 1) // 6
    assert (folder / PLAN).read_bytes() == (whole / PLAN).read_bytes()
    assert last_losses(folder) == last_losses(whole)


def test_stopped_while_it_is_written_down_it_is_tuned_and_not_half(tuned, tmp_path, monkeypatch):
    path, whole, _ = tuned
    folder = tmp_path / "study"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("plan.json", "configs", "runs"))
    for name in ("tuning", "tuning_wider"):
        shutil.rmtree(folder / name)
        shutil.copytree(whole / name, folder / name)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_plan, "write_plan", stop)
    log = []
    with pytest.raises(KeyboardInterrupt):
        sweep(path, folder, log)
    assert not (folder / PLAN).exists() and (folder / "configs" / "dense.yaml").exists()
    monkeypatch.undo()
    assert sweep(path, folder, log) and log == []
    assert (folder / PLAN).read_bytes() == (whole / PLAN).read_bytes()


def test_a_value_that_diverges_is_an_answer_and_is_not_tried_again(tmp_path):
    more = "  wild: {topology: {density: 0.5}}\n"
    path, log = study_file(tmp_path, "", ("tune:\n", f"{more}tune:\n")), []
    assert sweep(path, tmp_path / "study", log)
    assert len(log) == 1
    (wild,) = (one for one in read_plan(tmp_path / "study").tuning.arms if one.arm == "wild")
    assert wild.taken == {"optimizer.lr": 0.004} and wild.edges == {}
    assert [t.mean is None for t in wild.trials] == [False, False, False, True, True]
    assert wild.trials[-1].scores == (None,) * 3


def test_a_trial_that_failed_for_another_reason_holds_up_the_test_and_is_tried_again(tmp_path):
    path, folder, log = study_file(tmp_path), tmp_path / "study", []
    broken = Breaks("dense.optimizer.lr_0.016", seed=8)
    assert not sweep(path, folder, log, place=broken) and not (folder / PLAN).exists()
    assert sweep(path, folder, log)
    assert [len(runs) for _, runs in log] == [30, 1]


class Breaks(Stops):
    """A place where one run is killed."""

    def __init__(self, arm, seed):
        super().__init__(1000)
        self.name = f"name={arm}-seed{seed}"

    def start(self, command, **more):
        from tests.experiments.fake_tuning import Ended

        return Ended(-9) if self.name in command else self.here.start(command, **more)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_killed_tuning_goes_on(tmp_path, how):
    changes = (("seeds: [7, 8, 9]", "seeds: [7]"), ("seeds: [0, 1]", "seeds: [0]"), (GRID, RISING))
    path = study_file(tmp_path, "", *changes)
    whole, cut, fifo = tmp_path / "whole", tmp_path / "cut", tmp_path / "fifo"
    assert sweep(path, whole)
    os.mkfifo(fifo)
    command = [sys.executable, str(SCRIPT), str(path), str(cut)]
    for num_lines in (3, 5, 1):
        handle = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        env = {**os.environ, "FAKE_HOLD": f"{num_lines}:{fifo}"}
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
        wait_for(
            lambda h=handle: read_now(h), "a held run", alive=lambda p=process: p.poll() is None
        )
        process.send_signal(how)
        process.communicate(timeout=HANG)
        wait_for(lambda h=handle: read_now(h) == b"", "the end of all runs")
        os.close(handle)
    assert subprocess.run(command).returncode == 0
    assert (cut / PLAN).read_bytes() == (whole / PLAN).read_bytes()
    assert last_losses(cut) == last_losses(whole)


def test_what_is_written_is_what_is_read(tuned):
    path, folder, _ = tuned
    _, plan, _ = planned(path)
    tuning = tuned_before(folder, plan)
    _, again, _ = planned(path, tuning)
    assert again == read_plan(folder)
