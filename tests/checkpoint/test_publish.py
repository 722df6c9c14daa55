"""A checkpoint is whole and named, or does not exist; whatever touches it is found before use."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl.checkpoint import publish as publication
from sparsecl.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    NewerFormatError,
    ParameterEntry,
    Piece,
    verify,
)
from sparsecl.checkpoint.publish import LATEST, candidates, newest_valid, publish
from sparsecl.checkpoint.reader import Reader
from sparsecl.errors import CannotCreateError, DataError

FILE = "rank_0.safetensors"
PARAMETERS = {"w": ParameterEntry((2, 4), 0), "norm": ParameterEntry((3,), -1)}


def save(root: Path, step: int, *, keep: int = 9) -> Path:
    """One checkpoint, its values made of the step's number; `w` in two pieces."""
    whole = torch.arange(8.0) + step
    pieces = [
        Piece(FILE, "master", "w", 0, 0, 8),
        Piece(FILE, "master", "norm", 0, 0, 3),
    ]
    tensors = {"master/w": whole, "master/norm": torch.full((3,), float(step))}
    return publish(root, step, tensors, pieces, PARAMETERS, {"position": step}, keep=keep)


def test_what_goes_in_comes_out(tmp_path):
    folder = save(tmp_path, 7)
    manifest = verify(folder)
    assert (manifest.step, manifest.state) == (7, {"position": 7})
    assert (tmp_path / LATEST).read_text() == "step_7\n"
    reader = Reader(folder)
    assert reader.states() == ["master"]
    assert torch.equal(reader.read("master", "w"), torch.arange(8.0).view(2, 4) + 7)
    part = reader.read_local("master", "w", tp_rank=1, tp_size=2)
    assert part.tolist() == [[11.0, 12.0, 13.0, 14.0]]
    assert reader.read_local("master", "norm", tp_rank=1, tp_size=2).tolist() == [7.0] * 3
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.fault("D3")
def test_retention_keeps_the_newest(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step, keep=2)
    assert [path.name for path in candidates(tmp_path)] == ["step_10", "step_2"]
    save(tmp_path, 10, keep=2)  # the same step again
    assert [path.name for path in candidates(tmp_path)] == ["step_10", "step_2"]
    # A resume from step 2 (step 10 was damaged) gives that future up.
    save(tmp_path, 9, keep=2)
    assert [path.name for path in candidates(tmp_path)] == ["step_9", "step_2"]


@pytest.mark.fault("S4")
def test_what_a_newer_version_wrote_stays(tmp_path):
    """It is no damage: not passed over, not replaced, not removed, and it takes no place."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    path = tmp_path / "step_2" / MANIFEST
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    save(tmp_path, 4, keep=2)
    assert [path.name for path in candidates(tmp_path)] == ["step_4", "step_3", "step_2"]
    with pytest.raises(CannotCreateError, match="step_2: is of a newer version"):
        save(tmp_path, 2)
    assert newest_valid(tmp_path)[0] == tmp_path / "step_4"
    path = tmp_path / "step_4" / MANIFEST
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with pytest.raises(NewerFormatError, match="Go on with that one, or move .*step_4 away"):
        newest_valid(tmp_path)


POINTS = ("write_shard", "write_manifest", "os.rename", "atomic_open", "_retain")


@pytest.mark.fault("P4", "D3")
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_anywhere_leaves_one_valid_newest(tmp_path, monkeypatch, point, when):
    """The process dies before or after each step of publication; the next one finds its way."""
    save(tmp_path, 1, keep=1)
    target = os if point.startswith("os.") else publication
    name = point.removeprefix("os.")
    real = getattr(target, name)

    class Killed(BaseException):
        """Not an Exception: nobody may catch it, as nobody can catch SIGKILL."""

    def killer(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs) if when == "after" and name != "atomic_open" else None
        raise Killed(result)

    monkeypatch.setattr(target, name, killer)
    with pytest.raises(Killed):
        save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    found, _ = newest_valid(tmp_path)
    assert found is not None
    assert found.name in ("step_1", "step_2")
    published = point in ("atomic_open", "_retain") or (point, when) == (
        "os.rename",
        "after",
    )
    assert found.name == ("step_2" if published else "step_1")
    save(tmp_path, 2, keep=1)
    assert newest_valid(tmp_path) == (tmp_path / "step_2", [])


def test_damage_is_found_and_the_older_one_used(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / FILE
    path.write_bytes(path.read_bytes()[:-1])
    found, notes = newest_valid(tmp_path)
    assert found == tmp_path / "step_1"
    assert len(notes) == 1
    assert notes[0].startswith(f"passed over: {path}")


@pytest.mark.parametrize(
    "pieces",
    [
        [("w", 0, 0, 4)],
        [("w", 0, 0, 4), ("w", 0, 5, 3)],
        [("w", 0, 0, 4), ("w", 0, 3, 5)],
        [("w", 0, 0, 8), ("other", 0, 0, 1)],
        [("w", 0, 0, 8), ("w", 1, 0, 8)],
    ],
)
def test_pieces_must_cover_exactly_once(tmp_path, pieces):
    tensors = {"master/w": torch.zeros(8)}
    listed = [Piece(FILE, "master", name, rank, start, n) for name, rank, start, n in pieces]
    folder = publish(tmp_path, 1, tensors, listed, PARAMETERS, {}, keep=1)
    with pytest.raises(DataError):
        Reader(folder)
