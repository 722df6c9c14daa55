"""What a run does when its records or its results are not what was written, and its first row."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sparsecl.checkpoint.laws import check_laws
from sparsecl.checkpoint.manifest import read_manifest
from sparsecl.checkpoint.publish import candidates
from sparsecl.engine import run
from sparsecl.engine.resume.keeper import saved_records
from sparsecl.errors import DataError
from sparsecl.log import RecordFile
from sparsecl.metrics.records import read_records
from sparsecl.metrics.results import read_ended
from sparsecl.metrics.summary import summarize
from tests.launch import outcome
from tests.launch.starter import Starter

SETTINGS = ("--set", "phases.steps=20", "checkpoint.keep=1")


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory, shared_cache) -> Path:
    """Folder of a finished run with a checkpoint of step 0."""
    starter = Starter(tmp_path_factory.mktemp("whole"), shared_cache)
    done = starter.run("--run_dir", str(starter.folder / "run"), "--init_checkpoint", *SETTINGS)
    assert done.code == 0, done.err
    return starter.folder / "run"


@pytest.fixture(scope="module")
def interrupted(server, tmp_path_factory, shared_cache) -> Path:
    """Folder of the same run without that checkpoint, killed behind a checkpoint and a record."""
    starter = Starter(tmp_path_factory.mktemp("interrupted"), shared_cache)
    folder = starter.folder / "run"
    done = starter.run("--run_dir", str(folder), *SETTINGS, "--inject", "kill@step:15")
    assert done.code == -9, done.err
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


# ---- before and behind a checkpoint ------------------------------------------------------------


def saved_bytes(folder: Path) -> int:
    return read_manifest(candidates(folder / "checkpoints")[0]).state["scalars_bytes"]


@pytest.mark.fault("R1")
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_flipped_bit_before_the_checkpoint_is_refused(starter, interrupted, tmp_path, share):
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    flip(folder / "scalars.jsonl", int(share * saved_bytes(folder)))
    before = contents(folder)
    done = starter.run("--run_dir", str(folder), *SETTINGS)
    assert done.code == 65, done.err
    assert str(folder / "scalars.jsonl") in done.line and "sha256 differs" in done.line
    assert "Restore the file" in done.line and "--set init_from=" in done.line
    assert contents(folder) == before


@pytest.mark.fault("R1")
def test_what_lies_behind_the_checkpoint_does_not_count(starter, interrupted, whole, tmp_path):
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    assert saved_bytes(folder) < (folder / "scalars.jsonl").stat().st_size
    flip(folder / "scalars.jsonl", saved_bytes(folder) + 20)
    done = starter.run("--run_dir", str(folder), *SETTINGS)
    assert done.code == 0, done.err
    # The other one has saved step 0 as well, which only its config tells.
    found, wanted = outcome.read(folder), outcome.read(whole)
    assert found.records[1:] == wanted.records[1:]
    assert found.results["matrix"] == wanted.results["matrix"]
    assert found.tensors.keys() == wanted.tensors.keys()
    assert all(tensor.equal(wanted.tensors[key]) for key, tensor in found.tensors.items())


# ---- a finished run ----------------------------------------------------------------------------

DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda content: content[: len(content) // 2],
    lambda content: b"",
    lambda content: content.replace(b'"F_last": ', b'"F_last": 1'),
    lambda content: json.dumps({"name": "other", "records": {"num_bytes": 1}}).encode(),
]


@pytest.mark.fault("R2")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_results_are_made_anew(starter, whole, tmp_path, damage):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    path, before = folder / "results.json", contents(folder)
    path.write_bytes(damage(path.read_bytes()))
    manifest = folder / "checkpoints" / "step_40" / "manifest.json"
    manifest.write_bytes(b"{}")  # nothing is resumed, so that is no hindrance
    before[manifest.relative_to(folder)] = b"{}"
    done = starter.run("--run_dir", str(folder), *SETTINGS)
    assert done.code == 0, done.err
    assert f"{path} did not hold the results of its scalars.jsonl, and was made anew." in done.out
    before.pop(Path("forgetting.png"))
    after = contents(folder)
    after.pop(Path("forgetting.png"))
    assert after == before


@pytest.mark.fault("R1")
@pytest.mark.parametrize("hit", [b'{"kind": "eval"', b'kind": "eval"'])  # its form, its content
def test_damaged_records_of_a_finished_run_are_refused(starter, whole, tmp_path, hit):
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    flip(folder / "scalars.jsonl", (folder / "scalars.jsonl").read_bytes().rindex(hit))
    before = contents(folder)
    done = starter.run("--run_dir", str(folder), *SETTINGS)
    assert done.code == 65, done.err
    assert str(folder / "scalars.jsonl") in done.line and "Restore the file" in done.line
    assert contents(folder) == before


@pytest.mark.fault("R2")
def test_whole_records_of_another_run_are_refused(starter, whole, tmp_path):
    """They vouch for themselves, but the checkpoint has seen others."""
    other, folder = starter.folder / "other", Path(shutil.copytree(whole, tmp_path / "run"))
    assert starter.run("--run_dir", str(other), *SETTINGS, "seed=1").code == 0
    shutil.copyfile(other / "scalars.jsonl", folder / "scalars.jsonl")
    before = contents(folder)
    done = starter.run("--run_dir", str(folder), *SETTINGS)
    assert done.code == 65, done.err
    assert str(folder / "scalars.jsonl") in done.line
    assert contents(folder) == before


@pytest.mark.fault("R2")
def test_results_in_the_folder_of_a_run_that_has_not_ended(starter, interrupted, whole, tmp_path):
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    shutil.copyfile(whole / "results.json", folder / "results.json")
    done = starter.run("--run_dir", str(folder), *SETTINGS)
    assert done.code == 65, done.err
    assert str(folder / "results.json") in done.line and "Move away" in done.line


# ---- the row before training -------------------------------------------------------------------


def row(folder: Path, at: str) -> list[dict]:
    found = [json.loads(line) for line in open(folder / "scalars.jsonl", encoding="utf-8")]
    kept = ("domain", "loss_sum", "num_tokens", "num_bytes", "num_correct")
    return [{k: r[k] for k in kept} for r in found if r["kind"] == "eval" and r["at"] == at]


@pytest.mark.fault("R3")
def test_the_row_before_training_is_that_of_the_initial_checkpoint(starter, whole):
    """Bit for bit, by a run that begins with its weights; those of the end give the last row."""
    initial = whole / "initial" / "step_0"
    assert check_laws(initial).problems == ()
    assert [path.name for path in candidates(whole / "checkpoints")] == ["step_40"]
    for checkpoint, wanted in (
        (initial, row(whole, "start")),
        (whole / "checkpoints" / "step_40", row(whole, "phase_end")[-2:]),
    ):
        folder = starter.folder / checkpoint.name
        options = ("phases.steps=1", f"init_from={checkpoint}")
        done = starter.run("--run_dir", str(folder), "--set", *options)
        assert done.code == 0, done.err
        assert row(folder, "start") == wanted


# ---- any bit at all ----------------------------------------------------------------------------


def flips(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """`content` with one bit changed, `count` times at places of a seeded stream."""
    for place in np.random.default_rng(seed).integers(8 * len(content), size=count):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


def is_refused(action: Callable[[], object]) -> bool:
    """It raises DataError (65) in one line that says what to do."""
    try:
        action()
    except DataError as error:
        assert error.exit_code == 65 and "\n" not in str(error) and "scalars.jsonl" in str(error)
        return True
    return False


@pytest.mark.fault("R1")
def test_no_bit_of_finished_records_changes_a_figure(whole, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(whole / "results.json", folder / "results.json")
    content = (whole / "scalars.jsonl").read_bytes()
    wanted, refused = summarize(read_records(whole)), 0
    for changed in flips(content, 300, seed=1):
        (folder / "scalars.jsonl").write_bytes(changed)
        if is_refused(lambda: read_records(folder)):  # tools/metrics.py, plots
            assert is_refused(lambda: read_ended(folder))  # studies, tools/plan.py
            assert is_refused(lambda: run._show_finished(SimpleNamespace(path=folder)))
            refused += 1
        else:
            assert summarize(read_records(folder)) == wanted
    assert refused == 300  # the last record vouches for all bits


@pytest.mark.fault("R1")
def test_no_bit_before_a_checkpoint_goes_unseen(interrupted, tmp_path):
    path = tmp_path / "scalars.jsonl"
    content = (interrupted / "scalars.jsonl").read_bytes()
    extent = saved_records(read_manifest(candidates(interrupted / "checkpoints")[0]).state)
    seen = {True: 0, False: 0}
    for changed in flips(content, 300, seed=2):
        path.write_bytes(changed)
        before = changed[: extent.num_bytes] != content[: extent.num_bytes]
        assert is_refused(lambda: RecordFile(path, keep=extent).close()) == before
        assert path.read_bytes() == (changed if before else content[: extent.num_bytes])
        seen[before] += 1
    assert min(seen.values()) > 10


@pytest.mark.fault("R2")
def test_no_bit_of_the_results_stays_changed(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(whole / "scalars.jsonl", folder / "scalars.jsonl")
    path, content = folder / "results.json", (whole / "results.json").read_bytes()
    records = read_records(whole)
    for changed in flips(content, 100, seed=3):
        path.write_bytes(changed)
        with contextlib.suppress(DataError):  # a study that is collected
            assert read_ended(folder) == records
        run._show_finished(SimpleNamespace(path=folder))
        assert path.read_bytes() == content
        assert "was made anew" in capsys.readouterr().out
