"""A new file or folder that appears whole under its name, or not at all, and replaces nothing."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sparsecl.checkpoint.manifest import FOLDER_NAME, MANIFEST
from sparsecl.checkpoint.published import PUBLISHED
from sparsecl.errors import CannotCreateError
from sparsecl.files import fsync_folder, temporary_folder, writing
from sparsecl.opening import plain


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder to be filled; renamed to `out` at the end, after fsync of all in it.

    On an exception it is removed, and nothing is left under the name of `out`.

    Raises:
        CannotCreateError: `out` is there already, or cannot be made.
        StorageError: writing failed, for example because the disk is full.
    """
    with _published(out) as made:
        made.mkdir()
        yield made
        for path in sorted(made.rglob("*")):
            _sync(path)
        _sync(made)


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """As `new_folder`, for one file: its temporary name."""
    with _published(out) as made:
        yield made
        _sync(made)


@contextlib.contextmanager
def _published(out: Path) -> Iterator[Path]:
    _check_outside(out)
    # Another folder each time: two conversions to one OUT must not mix their files.
    _check_absent(out)
    with temporary_folder(out) as folder, writing(out):
        yield folder / out.name
        _check_absent(out)  # rename would replace a file, or an empty folder, without a word
        os.rename(folder / out.name, out)
        fsync_folder(out.parent)


def _check_outside(out: Path) -> None:
    """Refuse a place inside a checkpoint, whose manifest does not name it, or among those of a run.

    The checkpoint would be bad from then on, or what is made here taken for a newer one.
    """
    folder = out.absolute().parent.resolve()
    for parent in (folder, *folder.parents):
        named = parent == folder or FOLDER_NAME.fullmatch(parent.name)
        if named and (parent / MANIFEST).is_file():
            raise CannotCreateError(f"{out}: lies inside checkpoint {parent}; choose another place")
    if (folder / PUBLISHED).is_file():
        raise CannotCreateError(f"{out}: lies among the checkpoints of a run; choose another place")


def _check_absent(out: Path) -> None:
    if os.path.lexists(out):
        raise CannotCreateError(f"{out}: is there already; give another name or remove it")


def _sync(path: Path) -> None:
    if path.is_dir():
        fsync_folder(path)
        return
    with open(path, "rb", opener=plain) as file:
        os.fsync(file.fileno())
