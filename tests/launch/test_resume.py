"""What a start finds in its run folder, and when it must not go on."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sparsecl.checkpoint.manifest import read_manifest, verify, write_manifest
from sparsecl.checkpoint.publish import candidates
from sparsecl.checkpoint.published import PUBLISHED
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE
from sparsecl.engine.resume.run_folder import RunFolder
from sparsecl.errors import DataError
from sparsecl.files import sha256_file
from tests.launch import outcome
from tests.launch.starter import Done, Starter, tiny

SETTINGS = ("--set", "checkpoint.keep=3", "phases.steps=20")


@pytest.fixture(scope="module")
def interrupted(server, tmp_path_factory, shared_cache) -> Path:
    """Folder of a run that was killed with at least three checkpoints."""
    starter = Starter(tmp_path_factory.mktemp("interrupted"), shared_cache)
    folder = starter.folder / "run"
    done = starter.run("--run_dir", str(folder), *SETTINGS, "--inject", "kill@step:14")
    assert done.code == -9, done.err
    assert len(candidates(folder / "checkpoints")) >= 3
    return folder


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory, shared_cache) -> outcome.Outcome:
    """The same run without an interruption."""
    starter = Starter(tmp_path_factory.mktemp("whole"), shared_cache)
    done = starter.run("--run_dir", str(starter.folder / "run"), *SETTINGS)
    assert done.code == 0, done.err
    return outcome.read(starter.folder / "run")


@pytest.fixture
def folder(interrupted, tmp_path) -> Path:
    """A copy of the interrupted run, for one test."""
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def resume(starter: Starter, folder: Path, *settings: str, mode: str = "auto") -> Done:
    return starter.run("--run_dir", str(folder), "--resume", mode, *SETTINGS, *settings)


def refused(
    starter: Starter, folder: Path, code: int, *texts: str, settings=(), mode: str = "auto"
) -> None:
    """The resume ends in one line that names `texts`, and nothing of the run has changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    done = resume(starter, folder, *settings, mode=mode)
    assert done.code == code, (done.err, done.out)
    for text in texts:
        assert text in done.line
    before.pop(folder / ".lock", None)
    after = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    after.pop(folder / ".lock", None)
    assert after == before


# ---- a start that goes on, or begins anew ------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_goes_on_from_the_newest(starter, folder, whole, mode):
    newest = candidates(folder / "checkpoints")[0].name
    done = resume(starter, folder, mode=mode)
    assert done.code == 0, done.err
    assert f"resumed from {newest}" in done.out
    outcome.assert_equal(outcome.read(folder), whole)


def test_begins_anew_without_a_checkpoint(starter, folder, whole):
    shutil.rmtree(folder / "checkpoints")
    old_events = set((folder / "tb").rglob("events.*"))
    done = resume(starter, folder)
    assert done.code == 0, done.err
    assert "resumed" not in done.out and "begins anew" in done.out
    outcome.assert_equal(outcome.read(folder), whole)
    # The picture must not show the given-up attempt beside the run.
    assert old_events and not old_events & set((folder / "tb").rglob("events.*"))


@pytest.mark.fault("C1")
def test_lost_checkpoints_are_no_reason_to_begin_anew(starter, folder):
    for found in candidates(folder / "checkpoints"):
        shutil.rmtree(found)
    refused(starter, folder, 65, "no checkpoint is left", str(folder / "checkpoints"))


@pytest.mark.fault("C1")
@pytest.mark.parametrize(
    ("records", "listed", "said"),
    [
        ([], 0, []),
        ([{"kind": "phase", "phase": 0, "step": 0, "event": "start"}], 0, []),
        ([{"kind": "train", "phase": 0, "step": 7}], 1, ["begins anew: 7 steps"]),
        # The save of phase 0 may have been on its way.
        ([{"kind": "phase", "phase": 1, "step": 20, "event": "start"}], 1, ["begins anew: 20"]),
        ([{"kind": "phase", "phase": 2, "step": 40, "event": "start"}], 0, None),
        ([{"kind": "end", "phase": 1, "step": 20}], 0, None),
        ([{"kind": "train", "phase": 0, "step": 7}], 2, None),
    ],
)
def test_a_run_begins_anew_only_if_it_can_have_had_no_checkpoint(tmp_path, records, listed, said):
    (tmp_path / "checkpoints").mkdir()
    lines = [json.dumps({"step": step, "manifest": "0"}) for step in range(listed)]
    (tmp_path / "checkpoints" / PUBLISHED).write_text("".join(f"{line}\n" for line in lines))
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "scalars.jsonl").write_text(text + '\0\0torn {"')
    run = RunFolder(tmp_path)
    try:
        if said is None:
            with pytest.raises(DataError, match="no checkpoint is left .* to step \d"):
                run.check_unbegun()
        else:
            found = run.check_unbegun()
            assert len(found) == len(said) and all(map(str.startswith, found, said))
    finally:
        run.close()


@pytest.mark.fault("K6")
def test_settings_that_change_no_result_may_change(starter, folder, whole):
    done = resume(starter, folder, "name=other", "checkpoint.every=0")
    assert done.code == 0, done.err
    assert outcome.read(folder).tensors.keys() == whole.tensors.keys()
    for key, tensor in outcome.read(folder).tensors.items():
        assert tensor.equal(whole.tensors[key])


def passed_over(starter: Starter, folder: Path, whole, spoil: Callable[[Path], Any], text: str):
    """The newest checkpoint is not taken, a line says why, and the run ends as if never stopped."""
    newest, older, *_ = candidates(folder / "checkpoints")
    spoil(newest)
    done = resume(starter, folder)
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if "passed over" in line]
    assert str(newest) in line and text in line
    assert f"resumed from {older.name}" in done.out
    outcome.assert_equal(outcome.read(folder), whole)


def truncate(folder: Path) -> None:
    path = folder / "rank_0.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_byte(folder: Path) -> None:
    path = folder / "rank_0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"phase_step": ', '"phase_step": 1'))


TEARS: list[tuple[Callable[[Path], Any], str]] = [
    (truncate, "bytes, manifest says"),
    (flip_byte, "sha256 differs"),
    (change_manifest, "sha256 does not match"),
    (lambda folder: (folder / "rank_0.safetensors").unlink(), "missing"),
    (lambda folder: (folder / "manifest.json").unlink(), "never finished"),
]


@pytest.mark.fault("C1", "C2", "C3")
@pytest.mark.parametrize(("tear", "text"), TEARS)
def test_a_torn_checkpoint_is_passed_over(starter, folder, whole, tear, text):
    passed_over(starter, folder, whole, tear, text)


@pytest.mark.fault("D3")
def test_a_torn_checkpoint_takes_no_place_of_a_whole_one(starter, folder):
    newest, *_ = candidates(folder / "checkpoints")
    ahead = newest.with_name("step_1000")
    shutil.copytree(newest, ahead)
    flip_byte(ahead)
    done = resume(starter, folder, "checkpoint.keep=1")
    assert done.code == 0, done.err
    assert [path.name for path in candidates(folder / "checkpoints")] == ["step_40"]


@pytest.mark.fault("C1")
def test_no_whole_checkpoint_is_no_reason_to_begin_anew(starter, folder):
    for found in candidates(folder / "checkpoints"):
        flip_byte(found)
    refused(starter, folder, 65, "no checkpoint is valid", "sha256 differs", "--run_dir")


# ---- a run that is not the one that was started ------------------------------------------------


@pytest.mark.fault("K6")
@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("optimizer.lr=0.01", "optimizer.lr: 0.003 -> 0.01"),
        ("model.width=64", "model.width: 32 -> 64"),
        ("topology.density=0.5", "topology.density: 0.25 -> 0.5"),
        ("seed=1", "seed: 0 -> 1"),
        ("phases.order=[b, a]", 'phases.order.0: (absent) -> "b"'),
    ],
)
def test_another_config_is_refused(starter, folder, setting, text):
    refused(starter, folder, 64, text, "--run_dir", settings=(setting,))


@pytest.mark.fault("T7")
def test_other_data_is_refused(starter):
    path, folder = starter.folder / "a.txt", starter.folder / "run"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 50)
    valid = starter.folder / "valid.txt"
    valid.write_text("pack my box with five dozen liquor jugs. " * 10)
    data = tiny(starter.cache)["data"]
    first = {"name": "a", "source": "files", "train": [str(path)], "validation": [str(valid)]}
    starter.config(data={**data, "domains": [first, data["domains"][1]]})
    killed = starter.run("--run_dir", str(folder), *SETTINGS, "--inject", "kill@step:5")
    assert killed.code == -9
    path.write_text("the quick brown cat jumps over the lazy dog. " * 50)
    refused(starter, folder, 65, "the data changed since the checkpoint")


def rewrite(folder: Path, **changes: Any) -> None:
    """Put a manifest around what is in a checkpoint folder that `verify` accepts."""
    manifest = read_manifest(folder)
    for name in manifest.files:
        path = folder / name
        manifest.files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_manifest(folder, dataclasses.replace(manifest, **changes))
    verify(folder)


@pytest.mark.fault("T6")
def test_another_tokenizer_is_refused(starter, folder):
    """With nothing that says which manifests the run has published, its digest is compared."""
    newest = candidates(folder / "checkpoints")[0]
    rewrite(newest, state={**read_manifest(newest).state, "tokenizer": "0" * 64})
    (newest.parent / PUBLISHED).unlink()
    refused(starter, folder, 65, str(newest), "tokenizer", "000000000000")


# ---- a checkpoint that says what cannot be, with digests that fit -------------------------------


def lie(*path: str, value: Any) -> Callable[[Path], None]:
    def tell(folder: Path) -> None:
        state = json.loads(json.dumps(read_manifest(folder).state))
        at = state
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        rewrite(folder, state=state)

    return tell


def poke(key: str, value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (shard,) = folder.glob("rank_*.safetensors")
        tensors = load_file(shard)
        tensors[key] = tensors[key].copy()
        tensors[key].reshape(-1)[0] = value
        save_file(tensors, shard)
        rewrite(folder)

    return change


def halve_precision(folder: Path) -> None:
    (shard,) = folder.glob("rank_*.safetensors")
    tensors = load_file(shard)
    save_file({**tensors, "master/norm.weight": np.float16(tensors["master/norm.weight"])}, shard)
    rewrite(folder)


# Of each kind one; some others in the slow half, and engine/resume/test_saved.py knows all laws.
LIES = [
    (lie("position", "step", value=-5), "its position of step -5"),
    (lie("observers", "clock", "train_seconds", value=9.0), PUBLISHED),
    (poke("exp_avg_sq/norm.weight", -1.0), "negative values"),
]
MORE_LIES: list[tuple[Callable[[Path], None], str]] = [
    (lie("position", "phase", value=9), "the run has 2 phases"),
    (lie("optimizer", "counters", "micro_steps", value=3), "counters.micro_steps"),
    (lie("topology", value={}), "state.topology"),
    (poke("master/norm.weight", np.nan), "values that are not finite"),
    (halve_precision, "is F16, not F32"),
]


@pytest.mark.fault("S1", "S3")
@pytest.mark.parametrize(
    ("tell", "text"),
    [*LIES, *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE_LIES)],
)
def test_an_unlawful_checkpoint_is_passed_over(starter, folder, whole, tell, text):
    passed_over(starter, folder, whole, tell, text)


@pytest.mark.fault("S1")
def test_no_lawful_checkpoint_is_no_reason_to_begin_anew(starter, folder):
    for path in candidates(folder / "checkpoints"):
        lie("position", "phase", value=9)(path)
    refused(starter, folder, 65, "no checkpoint is valid", "the run has 2 phases")


@pytest.mark.fault("S4")
@pytest.mark.parametrize("mode", ["auto", "must"])
def test_a_newer_version_s_checkpoint_is_neither_passed_over_nor_touched(starter, folder, mode):
    newest = candidates(folder / "checkpoints")[0]
    path = newest / "manifest.json"
    path.write_text(path.read_text().replace('"format": 4', '"format": 5'))
    refused(starter, folder, 65, str(path), "format 5, this version reads 4", mode=mode)


def test_a_shorter_record_is_refused(starter, folder):
    path = folder / "scalars.jsonl"
    path.write_text(path.read_text()[:500])
    refused(starter, folder, 65, str(path), "500 bytes")


def test_a_run_goes_on_in_the_other_storage(starter, folder, whole):
    """It rounds differently, so it is the same run to the last digits that the tables show."""
    done = resume(starter, folder, "topology.storage=packed", "topology.keep_expansion=true")
    assert done.code == 0, done.err
    found, wanted = outcome.read(folder), whole
    assert np.allclose(found.results["matrix"]["loss"], wanted.results["matrix"]["loss"], atol=1e-5)
    assert found.results["audit"]["nonzero"] == 0


# ---- a checkpoint with a weight that may not exist ---------------------------------------------


@pytest.mark.fault("C6", "C7")
def test_a_moved_weight_is_found(starter, folder):
    """A checkpoint holds live weights only; a weight elsewhere is another graph."""
    newest = candidates(folder / "checkpoints")[0]
    layer = "layers.1.mlp.up"
    bits = load_file(newest / TOPOLOGY_FILE)
    mask = np.unpackbits(bits[f"{layer}.weight"]).astype(bool)
    mask[[mask.argmax(), mask.argmin()]] ^= True
    save_file({**bits, f"{layer}.weight": np.packbits(mask)}, newest / TOPOLOGY_FILE)
    rewrite(newest)
    done = resume(starter, folder)
    assert done.code == 0, done.err
    assert f"passed over: {newest}: topology digest of {layer}.weight" in done.out


def test_a_topology_of_another_size_is_refused(starter, folder):
    newest = candidates(folder / "checkpoints")[0]
    bits = load_file(newest / TOPOLOGY_FILE)
    name = next(iter(bits))
    save_file({**bits, name: bits[name][:-1]}, newest / TOPOLOGY_FILE)
    rewrite(newest)
    done = resume(starter, folder)
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if "passed over" in line]
    assert TOPOLOGY_FILE in line and f"{name} is not a live set of a" in line
