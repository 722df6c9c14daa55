"""The disk is full, or fails, at any file of a save: code 74 everywhere, the last good stays."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from sparsecl import faults
from sparsecl.checkpoint import publish as publication
from sparsecl.checkpoint.published import PUBLISHED
from sparsecl.errors import CannotCreateError, StorageError
from tests.checkpoint.tiny import check_law, fork_ranks, save


def limit_files(point: str, number: int, size: int) -> None:
    """From the `number`-th passage of `point` on, no file grows beyond `size` bytes.

    Python ignores SIGXFSZ, so a write fails as it does on a full disk: half done.
    """
    real, left = faults.point, number

    def limiting(name: str, **objects: Any) -> None:
        nonlocal left
        real(name, **objects)
        left -= name == point
        if left == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    faults.point = limiting


def no_leftovers(root: Path) -> None:
    assert {path.name for path in root.iterdir()} <= {"step_1", "step_2", "latest", PUBLISHED}


@pytest.mark.fault("D1")
@pytest.mark.parametrize(
    ("file", "point", "number", "size", "found"),
    [
        ("topology.safetensors", "save.begin", 1, 50, 1),
        ("rank_0.safetensors", "save.shard", 2, 100, 1),
        ("manifest.json", "save.reported", 1, 300, 1),
        ("latest", "save.renamed", 1, 3, 2),  # `latest`; the folder is whole
    ],
)
def test_a_full_disk(tmp_path, file, point, number, size, found):
    root, log = tmp_path / "checkpoints", tmp_path / "log"
    save(root, 1, keep=1)
    latest = (root / "latest").read_text()

    def body(rank: int) -> None:
        limit_files(point, number, size)
        try:
            save(root, 2, keep=1)
        finally:  # so that the reason can be written down
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    (status,) = fork_ranks(1, body, log)
    message = log.read_text()
    assert os.waitstatus_to_exitcode(status) == StorageError.exit_code, message
    assert file in message and "File too large" in message and "\n" not in message
    check_law(root, {found})
    assert (root / "latest").read_text() == latest
    no_leftovers(root)
    save(root, 2, 22, keep=1)
    check_law(root, {22})


@pytest.mark.fault("D2")
@pytest.mark.parametrize("action", ["full", "eio"])
@pytest.mark.parametrize("point", sorted(faults.SAVE_POINTS))
def test_an_error_at_any_point(tmp_path, action, point):
    save(tmp_path, 1, keep=1)
    faults.arm([f"{action}@{point}"], seed=0, rank=0)
    try:
        with pytest.raises(StorageError, match="No space left|Input/output error") as raised:
            save(tmp_path, 2, keep=1)
    finally:
        faults.disarm()
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)
    check_law(tmp_path, {2 if point in ("save.renamed", "save.latest", "save.retained") else 1})
    no_leftovers(tmp_path)
    save(tmp_path, 3, keep=1)
    check_law(tmp_path, {3})


@pytest.mark.fault("D1")
def test_all_ranks_hear_of_a_full_disk(tmp_path):
    """Rank 1's disk is full: both ranks end with 74, and rank 0 has tidied up."""
    root = tmp_path / "checkpoints"
    save(root, 1)

    def body(rank: int) -> None:
        faults.arm(["full@save.shard/rank=1"], seed=0, rank=rank)
        save(root, 2, num_ranks=2)

    statuses = fork_ranks(2, body, tmp_path / "log")
    assert [os.waitstatus_to_exitcode(status) for status in statuses] == [74, 74]
    assert "rank_1.safetensors" in (tmp_path / "log").read_text()
    check_law(root, {1})
    no_leftovers(root)


@pytest.mark.fault("C1")
@pytest.mark.parametrize("point", ["shard_written", "synced", "reported"])
def test_a_file_that_lost_its_end_is_not_published(tmp_path, point):
    save(tmp_path, 1)
    faults.arm([f"truncate=0.5@save.{point}"], seed=0, rank=0)
    try:
        with pytest.raises(StorageError, match="bytes"):
            save(tmp_path, 2)
    finally:
        faults.disarm()
    check_law(tmp_path, {1})
    no_leftovers(tmp_path)


def test_a_manifest_that_lost_its_end_is_passed_over(tmp_path):
    save(tmp_path, 1)
    faults.arm(["truncate=0.9@save.latest"], seed=0, rank=0)
    try:
        save(tmp_path, 2)
    finally:
        faults.disarm()
    found, notes = publication.newest_valid(tmp_path)
    assert found == tmp_path / "step_1" and "step_2/manifest.json" in notes[0]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(CannotCreateError, match="checkpoints: cannot be written .is a file"):
        save(tmp_path / "checkpoints", 1)


@pytest.mark.fault("F4")
def test_latest_that_is_a_folder(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    with pytest.raises(CannotCreateError, match="latest: cannot be written .is a folder.$"):
        save(tmp_path, 2)
    found, notes = publication.newest_valid(tmp_path)
    assert found == tmp_path / "step_2" and "latest: ignored, not a plain file" in notes[0]


def test_a_failed_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    save(tmp_path, 1, 10)
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        if str(source).endswith("step_1.tmp"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StorageError, match="Input/output"):
        save(tmp_path, 1, 11)
    assert check_law(tmp_path, {10}) == tmp_path / "step_1"
    no_leftovers(tmp_path)
