"""launch/sweep.py with a study that is tuned: what it shows, submits, and runs."""

import pytest
import yaml

from sparsecl.experiments.running import runner
from sparsecl.experiments.study.study_plan import PLAN, failure_file, read_plan, run_folder
from sparsecl.files import write_json
from sparsecl.programs import sweep
from tests.launch.test_sweep import study as plain  # noqa: F401
from tests.metrics.fake_run import from_matrix, write_lines
from tests.slurm.stand_ins import stand_ins

TUNE = """
tune:
  keys: {optimizer.lr: [1.0e-4, 1.0e-3, 1.0e-2]}
  on: {seeds: [5], order: [b, a]}
"""


@pytest.fixture
def study(plain):  # noqa: F811
    """Two arms, tuned; the third of the plain study differs in the rate alone."""
    text = plain.read_text().replace("  broken: {optimizer: {lr: 1.0e+9}}\n", "")
    plain.write_text(text + TUNE)
    return plain


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The folder of the stand-ins for Slurm's commands."""
    return stand_ins(tmp_path / "fake", monkeypatch)


def finish(place):
    """Write every run of a folder of trials: the middle of the rates is the best."""
    for run in read_plan(place).runs:
        config = yaml.safe_load((place / "configs" / f"{run.arm}.yaml").read_text())
        last = {1e-4: 3.0, 1e-3: 2.0, 1e-2: 4.0}[config["optimizer"]["lr"]]
        if run.arm.startswith("sparse") and last == 4.0:
            reason = "step 3: a gradient that is not finite"
            write_json(failure_file(place, run), {"exit_code": 70, "reason": reason})
            continue
        folder = run_folder(place, run)
        folder.mkdir(parents=True)
        loss = [[4.0, 4.0], [2.0, 4.0], [last, last]]
        end = {"kind": "end", "seconds": 1.0, "tokens_per_second": 1.0}
        write_lines(folder / "scalars.jsonl", [*from_matrix(loss, ["a", "b"], [0, 1]), end])
        (folder / "results.json").write_text("{}")


def test_a_dry_run_tells_runs_and_cost_of_tuning_and_test(study, tmp_path, capsys):
    folder = tmp_path / "none"
    assert sweep.main([str(study), "--study_dir", str(folder), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "tuning by final_loss: 3 trials of each of 2 arms x 1 seeds = 6 runs, 23,040 tok" in out
    assert "test: 3 runs, 11,520 tokens" in out and not folder.exists()


def test_a_seed_of_the_test_is_refused(study, tmp_path, capsys):
    words = [str(study), "--study_dir", str(tmp_path / "none"), "--seeds", "6"]
    assert sweep.main(words) == 64
    assert "tune.on.seeds: 5 is a seed of the test too" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_slurm_gets_the_trials_first_and_the_test_from_a_later_call(study, fake, tmp_path, capsys):
    folder = tmp_path / "study"
    words = [str(study), "--study_dir", str(folder), "--where", "slurm"]
    assert sweep.main(words) == 0
    out = capsys.readouterr().out
    assert "submitted job 41, 6 runs: dense.optimizer.lr_0.0001/seed5, " in out
    assert "These are the runs of the tuning. When they are done, give the same command ag" in out
    assert not (folder / PLAN).exists()

    finish(folder / "tuning")
    assert sweep.main([*words, "--dry_run"]) == 0
    assert "tuning: 5 done, 1 failed, 0 begun, 0 missing of 6 runs" in capsys.readouterr().out
    sweep.main(words)
    out = capsys.readouterr().out
    assert "2 runs: dense/seed0, sparse/seed0" in out and "sparse.stopped_early/seed0" in out
    tuning = read_plan(folder).tuning
    assert [one.taken for one in tuning.arms] == [{"optimizer.lr": 0.001}] * 2
    for arm in ("dense", "sparse", "sparse.stopped_early"):
        config = yaml.safe_load((folder / "configs" / f"{arm}.yaml").read_text())
        assert config["optimizer"]["lr"] == 0.001
    assert sweep.main([*words, "--dry_run"]) == 0  # the test, and no tuning any more
    assert "tuning by" not in capsys.readouterr().out


def given(folder, run):
    """The config that a run has written down."""
    return yaml.safe_load((run_folder(folder, run) / "config.yaml").read_text())


@pytest.mark.slow
def test_a_study_is_tuned_and_tested(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "TICK", 0.05)
    path, folder = study, tmp_path / "study"
    path.write_text(path.read_text().replace("1.0e-4, 1.0e-3, 1.0e-2", "1.0e-3, 1.0e-2"))
    assert sweep.main([str(path), "--study_dir", str(folder), "--jobs", "2"]) == 0
    plan = read_plan(folder)
    for place in (folder / "tuning", folder / "tuning_wider"):
        for run in read_plan(place).runs if place.exists() else ():
            config = given(place, run)
            assert config["seed"] == 5 and config["phases"]["order"] == ["b", "a"]
    for run in plan.runs:
        config = given(folder, run)
        assert config["seed"] == 0 and config["phases"]["order"] == []
        source = "sparse" if run.arm == "sparse" else "dense"
        assert config["optimizer"]["lr"] == plan.tuning.taken(source)["optimizer.lr"]
    assert "Tuning before the test" in (folder / "report" / "report.html").read_text()
