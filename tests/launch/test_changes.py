"""A run that stopped exactly between two domains, and one that goes on with another config."""

import json
import shutil
from pathlib import Path

import pytest

from sparsecl.checkpoint.publish import candidates
from tests.launch import outcome
from tests.launch.starter import Starter

SETTINGS = ("--set", "checkpoint.keep=9")
BORDER = "step_12"  # the phases have 12 steps each


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory, shared_cache) -> Path:
    """Folder of a finished run that has kept all of its checkpoints."""
    starter = Starter(tmp_path_factory.mktemp("whole"), shared_cache)
    done = starter.run("--run_dir", str(starter.folder / "run"), *SETTINGS)
    assert done.code == 0, done.err
    return starter.folder / "run"


@pytest.fixture
def at_border(whole, tmp_path) -> Path:
    """The same run as a kill right after the checkpoint between the domains has left it."""
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "results.json").unlink()
    for found in candidates(folder / "checkpoints"):
        if int(found.name.removeprefix("step_")) > int(BORDER.removeprefix("step_")):
            shutil.rmtree(found)
    return folder


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in open(folder / "scalars.jsonl", encoding="utf-8")]


@pytest.mark.fault("T8")
def test_a_stop_between_two_domains_goes_on_with_the_second(starter, at_border, whole):
    done = starter.run("--run_dir", str(at_border), *SETTINGS)
    assert done.code == 0, done.err
    assert f"resumed from {BORDER}" in done.out
    starts = [r for r in records(at_border) if r["kind"] == "phase" and r["event"] == "start"]
    assert [(r["phase"], r["domain"], r["step"]) for r in starts] == [(0, "a", 0), (1, "b", 12)]
    outcome.assert_equal(outcome.read(at_border), outcome.read(whole))


@pytest.mark.fault("K6")
def test_another_config_needs_permission_and_leaves_a_mark(starter, at_border):
    arguments = ("--run_dir", str(at_border), *SETTINGS, "optimizer.lr=0.01")
    done = starter.run(*arguments)
    assert (done.code, "optimizer.lr: 0.003 -> 0.01" in done.line) == (64, True)
    assert "\n  optimizer.lr: 0.003 -> 0.01\n" in done.out
    done = starter.run(*arguments, "--allow_config_change")
    assert done.code == 0, done.err
    assert "\n    optimizer.lr: 0.003 -> 0.01\n" in (at_border / "log.txt").read_text()
    (mark,) = [record for record in records(at_border) if record["kind"] == "changed"]
    assert mark["step"] == 12 and "  optimizer.lr: 0.003 -> 0.01" in mark["lines"]
    assert "lr: 0.01" in (at_border / "config.yaml").read_text()
    rates = {r["step"]: r["lr"] for r in records(at_border) if r["kind"] == "train"}
    assert max(rates[step] for step in range(13, 25)) == pytest.approx(0.01)
    assert json.loads((at_border / "results.json").read_text())["domains"] == ["a", "b"]
