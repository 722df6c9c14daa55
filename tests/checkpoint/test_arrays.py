"""What methods keep beside the parameters goes into a checkpoint, is checked, and comes back."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsecl.checkpoint.arrays import METHODS_FILE
from sparsecl.checkpoint.background import Saver
from sparsecl.checkpoint.laws import check_laws
from sparsecl.checkpoint.manifest import verify
from sparsecl.checkpoint.publish import publish
from sparsecl.checkpoint.reader import Reader
from sparsecl.checkpoint.rewrite import reshard
from sparsecl.errors import DataError
from tests.checkpoint import made
from tests.checkpoint.test_laws import NO_LAWS

ARRAYS = {
    "m.ids": torch.arange(6, dtype=torch.int32).view(2, 3),
    "m.logits": torch.tensor([[0.5, -0.0, 1e-42]]),
}


def save(root: Path, arrays: Mapping[str, torch.Tensor]) -> Path:
    reader = Reader(made.save(root / "source"))
    tensors = {p.key: reader._files[p.file].get_tensor(p.key) for p in reader.manifest.pieces}
    manifest = reader.manifest
    return publish(
        root,
        5,
        tensors,
        manifest.pieces,
        manifest.parameters,
        manifest.state,
        keep=9,
        topologies=reader.topologies,
        arrays=arrays,
    )


def equal(found: Mapping[str, torch.Tensor]) -> bool:
    return set(found) == set(ARRAYS) and all(
        found[key].dtype == value.dtype and found[key].equal(value) for key, value in ARRAYS.items()
    )


def test_they_come_back_and_no_law_minds_them(tmp_path):
    folder = save(tmp_path, ARRAYS)
    assert METHODS_FILE in verify(folder).files
    assert equal(Reader(folder).arrays())
    assert check_laws(folder, state=NO_LAWS).problems == ()
    (tmp_path / "other").mkdir()  # the run has not published it
    reshard(Reader(folder), tmp_path / "other" / "cut", tp_size=2)
    assert equal(Reader(tmp_path / "other" / "cut").arrays())
    assert check_laws(tmp_path / "other" / "cut", state=NO_LAWS).problems == ()


def test_without_arrays_there_is_no_file(tmp_path):
    folder = save(tmp_path, {})
    assert METHODS_FILE not in verify(folder).files
    assert Reader(folder).arrays() == {}


def test_laws_look_at_them(tmp_path):
    folder = save(tmp_path, {**ARRAYS, "m.logits": torch.tensor([float("nan")])})
    laws = replace(NO_LAWS, arrays=lambda _, arrays: iter([f"{len(arrays)} arrays"]))
    text = "\n".join(check_laws(folder, state=laws).problems)
    assert "m.logits has values that are not finite" in text and "2 arrays" in text


@pytest.mark.parametrize("change", ["lost", "changed"])
def test_damage_is_found(tmp_path, change):
    folder = save(tmp_path, ARRAYS)
    path = folder / METHODS_FILE
    if change == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match=METHODS_FILE):
        verify(folder)


def test_a_save_in_the_background_keeps_what_was_there(tmp_path):
    arrays = {key: value.clone() for key, value in ARRAYS.items()}
    reader = Reader(made.save(tmp_path / "source"))
    tensors = {p.key: reader._files[p.file].get_tensor(p.key) for p in reader.manifest.pieces}
    manifest = reader.manifest
    saver = Saver(tmp_path, keep=1, background=True)
    about = (manifest.pieces, manifest.parameters, manifest.state, reader.topologies)
    saver.save(6, tensors, *about, arrays)
    for value in arrays.values():
        value.zero_()
    saver.wait()
    assert equal(Reader(tmp_path / "step_6").arrays())
