"""The machine loses power at any moment of a publication: a whole checkpoint is found afterwards.

A model of what a disk has kept. A file has the content of its last fsync, a folder the entries of
its last fsync; what came after may be there or not. So for every moment the folder is rebuilt three
times: all names are there but what was not synced is empty; the same with such files missing; and
nothing at all is there that was not synced, in which case old names and removed files come back.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsecl.checkpoint import publish as publication
from tests.checkpoint.tiny import check_law, save, value_of

CHANGES = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


class Disk:
    """What survives a power cut, learnt from the calls that a publication makes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, bytes] = {}
        """Inode -> content at its last fsync."""

        self.folders: dict[int, dict[str, tuple[int, bool]]] = {}
        """Inode -> name -> (inode, is a folder) at its last fsync."""

        self.open: list[int] = []  # an inode that is held is not given to another file
        self.moments = 0

    def synced(self, handle: int) -> None:
        """Take note of an fsync."""
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        inode = os.fstat(handle).st_ino
        self.open.append(os.dup(handle))
        if path.is_dir():
            entries = os.scandir(path)
            self.folders[inode] = {e.name: (e.inode(), e.is_dir()) for e in entries}
        else:
            self.files[inode] = path.read_bytes()

    def rebuilt(self, target: Path) -> Iterator[Path]:
        """The three worlds that may be found if the power fails now."""
        for keep_empty in (True, False):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(self.root, target)
            for path in self.root.rglob("*"):
                copy, inode = target / path.relative_to(self.root), path.stat().st_ino
                if path.is_file() and self.files.get(inode) != path.read_bytes():
                    copy.write_bytes(b"") if keep_empty else copy.unlink()
            yield target
        shutil.rmtree(target, ignore_errors=True)
        self._oldest(self.root.stat().st_ino, target)
        yield target

    def _oldest(self, inode: int, target: Path) -> None:
        target.mkdir()
        for name, (child, is_folder) in self.folders.get(inode, {}).items():
            if is_folder:
                self._oldest(child, target / name)
            else:
                (target / name).write_bytes(self.files.get(child, b""))

    def close(self) -> None:
        for handle in self.open:
            os.close(handle)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk that watches; `disk.check` is called before and after each change."""
    made: Any = Disk(tmp_path / "checkpoints")
    made.check = lambda: None

    def watching(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.check()
            result = real(*args, **kwargs)
            if name == "fsync":
                made.synced(args[0])
            return result

        return call

    for name in CHANGES:
        monkeypatch.setattr(os, name, watching(name, getattr(os, name)))
    yield made
    monkeypatch.undo()
    made.close()


def watch(disk: Any, target: Path, allowed: set[int]) -> list[str]:
    """From now on check every world of every moment; what is wrong in any of them."""
    problems: list[str] = []

    def check() -> None:
        disk.check = lambda: None  # not while rebuilding
        for number, world in enumerate(disk.rebuilt(target)):
            found, notes = publication.newest_valid(world)
            if found is None or value_of(found) not in allowed:
                problems.append(f"moment {disk.moments}, world {number}: {found}, {notes}")
        disk.moments += 1
        disk.check = check

    disk.check = check
    return problems


@pytest.mark.fault("D4")
@pytest.mark.parametrize("step", [2, 1])  # a new one; the same again
def test_a_power_cut_at_any_moment(tmp_path, disk, step):
    save(disk.root, 1, 100)
    problems = watch(disk, tmp_path / "after", {100, 200})
    save(disk.root, step, 200, keep=1)
    assert disk.moments > 15
    assert not problems
    problems = watch(disk, tmp_path / "after", {200})  # now nothing may be lost any more
    disk.check()
    disk.check = lambda: None
    assert not problems
    check_law(disk.root, {200})


@pytest.mark.fault("D4")
@pytest.mark.parametrize("broken", ["write_shard", "write_manifest", "_begin"])
def test_the_model_sees_what_is_wrong(tmp_path, disk, monkeypatch, broken):
    """A publication without one of its precautions is found out."""
    save(disk.root, 1, 100)
    real = getattr(publication, broken)

    def unsynced(*args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda handle: None)
            return real(*args)

    def eager(target: Path, temporary: Path) -> None:
        shutil.rmtree(target.with_name("step_1"))  # makes room before the new one is there
        real(target, temporary)

    monkeypatch.setattr(publication, broken, eager if broken == "_begin" else unsynced)
    problems = watch(disk, tmp_path / "after", {100, 200})
    save(disk.root, 2, 200, keep=1)
    assert problems
