"""tools/interference.py: runs, checkpoints and studies; what it prints, writes and refuses."""

import json
import shutil
from pathlib import Path

import pytest

from sparsecl.experiments.study.study_plan import (
    AnalysisConfig,
    Arm,
    Run,
    StudyPlan,
    run_folder,
    write_plan,
)
from sparsecl.metrics.interference import INTERFERENCE, read_interference
from sparsecl.programs import interference as tool
from tests.analysis import made_run

FAST = ("--sequences", "2", "--weights", "2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """A run with two checkpoints; tests work on copies."""
    folder = tmp_path_factory.mktemp("made") / "run"
    for step in (2, 3):
        made_run.make_run(folder, made_run.load(shared_cache), step=step)
    return folder


@pytest.fixture
def run(tmp_path: Path, made: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def ask(capsys, *arguments):
    code = tool.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def make_study(folder: Path, made: Path, seeds=(0, 1)) -> StudyPlan:
    """Both runs are done; they are copies of one."""
    arm = Arm(
        name="er", label="er", kind="er_fixed", density=0.25, live=1, total=2,
        flops_per_token=1, steps=1, tokens=1,
    )  # fmt: skip
    plan = StudyPlan(
        name="study", question="?", scale="demo", seeds=seeds, analysis=AnalysisConfig(),
        arms=(arm,), runs=tuple(Run(name=f"er/seed{k}", arm="er", seed=k) for k in seeds),
        ds_config="ds_configs/zero2.json", threads=1, command="plan", digest="0",
    )  # fmt: skip
    folder.mkdir()
    write_plan(folder, plan)
    for one in plan.runs:
        shutil.copytree(made, run_folder(folder, one))
    return plan


def test_a_run_is_measured_and_written(capsys, run, tmp_path):
    out = tmp_path / "new" / "far.json"
    code, text, err = ask(capsys, run, *FAST, "--eps", "2e-3", "--out", out)
    assert code == 0 and text.startswith("tiny, step_3: 6144 live weights")
    for title in ("Paths along the 4", "Cosine", "Jaccard", "Loss change", "KL(", "Means"):
        assert any(part.startswith(title) for part in text.split("\n\n")), title
    assert "gradients of 2 domains" in err and f"wrote {run / INTERFERENCE}" in err
    found = read_interference(run)
    assert read_interference(out) == found
    assert (found.run, found.checkpoint, found.domains) == ("tiny", "step_3", ("a", "b"))
    assert (found.settings.sequences, found.settings.eps, found.update.eps) == (2, 2e-3, 2e-3)
    assert found.num_tokens == (32, 32)
    assert (found.density.masked, found.density.num_live) == (0.25, 6144)
    assert found.update.loss_change[0][0] < 0 < found.update.kl[0][0]
    assert found.gradients.cosine[0][0] == found.gradients.cosine[1][1] == 1
    assert found.gradients.dot_per_live_weight[0][1] == found.gradients.dot[0][1] / 6144
    assert found.single_weight.num_weights == 2
    # Again: the same numbers, whatever was there.
    before = (run / INTERFERENCE).read_bytes()
    assert ask(capsys, run, *FAST, "--eps", "2e-3")[0] == 0
    assert (run / INTERFERENCE).read_bytes() == before


def test_a_named_checkpoint_has_a_file_of_its_own(capsys, run):
    code, text, _ = ask(capsys, run / "checkpoints" / "step_2", run, *FAST)
    assert code == 0
    assert read_interference(run / "interference_step_2.json").checkpoint == "step_2"
    assert read_interference(run).checkpoint == "step_3"
    assert text.splitlines()[-1].startswith(str(run)) and "d loss" in text


def test_a_study_is_brought_up_to_date(capsys, tmp_path, made):
    study = tmp_path / "study"
    plan = make_study(study, made)
    first, second = (run_folder(study, one) for one in plan.runs)
    (second / "results.json").unlink()  # not finished: not looked at
    code, text, err = ask(capsys, study, *FAST)
    assert code == 0 and "er/seed0: wrote" in err and "er/seed1" not in text + err
    assert text.splitlines()[-1].startswith("er/seed0  0.25000")
    assert read_interference(first).domains == ("a", "b")
    (second / "results.json").write_text("{}\n")
    code, text, err = ask(capsys, study, *FAST)
    assert code == 0 and "er/seed0: up to date" in err and "er/seed1: wrote" in err
    # Other settings, another checkpoint, or a broken file: again.
    assert "er/seed0: wrote" in ask(capsys, study, "--sequences", "1", "--weights", "2")[2]
    shutil.rmtree(first / "checkpoints" / "step_3")
    (second / INTERFERENCE).write_text("{}")
    err = ask(capsys, study, "--sequences", "1", "--weights", "2")[2]
    assert "er/seed0: wrote" in err and "er/seed1: wrote" in err
    assert read_interference(first).checkpoint == "step_2"


@pytest.mark.fault("R4")
def test_a_config_that_is_not_the_checkpoints_is_refused(capsys, run):
    path = run / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("seed: 0", "seed: 4", 1))
    code, text, err = ask(capsys, run, *FAST)
    assert (code, text) == (65, "")
    assert f"sparsecl: {path}: is not the config of step_3: seed: 0 -> 4." in err


def test_a_failed_run_does_not_stop_the_others(capsys, tmp_path, made):
    study, out = tmp_path / "study", tmp_path / "all.json"
    plan = make_study(study, made)
    first, second = (run_folder(study, one) for one in plan.runs)
    shutil.rmtree(first / "checkpoints")
    code, text, err = ask(capsys, study, second, *FAST, "--out", out)
    assert code == 66
    errors = [line for line in err.splitlines() if line.startswith("sparsecl: ")]
    assert errors[0].startswith("sparsecl: er/seed0: ") and "has no checkpoint" in errors[0]
    assert errors[1:] == ["sparsecl: 1 of 3 failed: er/seed0"]
    assert "er/seed1" in text and not (first / INTERFERENCE).exists()
    assert [one["checkpoint"] for one in json.loads(out.read_text())] == ["step_3", "step_3"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{folder}/nowhere",), 66, "nowhere: no such run folder or checkpoint folder"),
        (("{folder}",), 66, "not a run folder, it has no config.yaml"),
        (("{folder}", "--sequences", "0"), 64, "--sequences must be >= 1, got 0"),
        (("{folder}", "--eps", "nan"), 64, "--eps must be in (0, 1], got nan"),
        (("{folder}", "--weights", "-1"), 64, "--weights must be >= 1, got -1"),
        (("{empty}",), 66, "none of its 1 runs is finished"),
        (("{broken}",), 64, "plan.json"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(capsys, tmp_path, made, arguments, code, message):
    empty, broken, bare = (tmp_path / name for name in ("empty", "broken", "bare"))
    (one,) = make_study(empty, made, seeds=(0,)).runs
    (run_folder(empty, one) / "results.json").unlink()
    for folder in (broken, bare):
        folder.mkdir()
    (broken / "plan.json").write_text("{}")
    given = [text.format(folder=bare, empty=empty, broken=broken) for text in arguments]
    got, text, err = ask(capsys, *given)
    assert (got, text) == (code, "")
    assert err.startswith("sparsecl: ") and message in err and err.count("\n") == 1


def test_a_file_that_cannot_be_written(capsys, run):
    (run / INTERFERENCE).mkdir()
    code, _, err = ask(capsys, run, *FAST)
    assert code == 73 and f"sparsecl: {run / INTERFERENCE}: cannot be written" in err
    (run / INTERFERENCE).rmdir()
    code, _, err = ask(capsys, run, *FAST, "--out", run / "config.yaml" / "far.json")
    assert code == 73 and "far.json: cannot be written" in err
