"""Whether a run has ended, and whether its results are those of its records."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsecl.errors import DataError
from sparsecl.experiments.findings.collect import collect, status_of
from sparsecl.experiments.study.study_plan import run_folder
from sparsecl.files import write_json
from sparsecl.metrics.records import read_records
from sparsecl.metrics.results import RESULTS, has_ended, read_ended
from sparsecl.metrics.summary import summarize
from tests.experiments.fake_study import FakeArm, write_study
from tests.metrics.fake_run import write_run


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run that has ended."""
    made = write_run(tmp_path / "run", domains=("a", "b"), every=0)
    write_json(made / RESULTS, summarize(read_records(made)))
    return made


def test_a_run_that_has_ended(folder):
    assert has_ended(folder) and read_ended(folder) == read_records(folder)
    whole = json.loads((folder / RESULTS).read_text())
    content = (folder / "scalars.jsonl").read_bytes()
    assert whole["records"]["num_bytes"] == len(content)
    del whole["records"]  # as earlier versions wrote it
    write_json(folder / RESULTS, whole)
    assert read_ended(folder) == read_records(folder)
    (folder / RESULTS).unlink()
    assert not has_ended(folder)


def cut(folder: Path) -> None:
    path = folder / RESULTS
    path.write_bytes(path.read_bytes()[:-9])


def link(folder: Path) -> None:
    (folder / RESULTS).rename(folder / "elsewhere")
    os.symlink("elsewhere", folder / RESULTS)


def no_object(folder: Path) -> None:
    (folder / RESULTS).write_text("[]")


@pytest.mark.fault("R2")
@pytest.mark.parametrize("damage", [cut, link, no_object])
def test_results_that_cannot_be_read(folder, damage: Callable[[Path], None]):
    damage(folder)
    for action in (has_ended, read_ended):
        with pytest.raises(DataError, match=RESULTS) as caught:
            action(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.fault("R2")
def test_records_of_another_run(folder):
    path = folder / "scalars.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\n", *lines[1:]]))
    with pytest.raises(DataError, match="was made of another scalars.jsonl"):
        read_ended(folder)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(DataError, match="scalars.jsonl has no end. Move away"):
        read_ended(folder)


@pytest.mark.fault("R2")
def test_a_study_does_not_average_what_is_damaged(tmp_path):
    """It says so; the run counts as not done, and the runner starts it again."""
    study = write_study(tmp_path / "study", [FakeArm(name="dense")], seeds=(0, 1))
    planned = collect(study).plan.runs[0]
    assert status_of(study, planned)[0] == "done"
    cut(run_folder(study, planned))
    assert status_of(study, planned)[0] == "begun"
    with pytest.raises(DataError, match="no JSON object. Start the run or its study"):
        collect(study)
