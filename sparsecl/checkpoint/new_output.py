"""A new file or folder that appears whole under its name, or not at all, and replaces nothing."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparsecl.errors import CannotCreateError, StorageError
from sparsecl.files import fsync_folder


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary sibling to be filled; renamed to `out` at the end, after fsync of all in it.

    On an exception it is removed, and nothing is left under the name of `out`.

    Raises:
        CannotCreateError: `out` is there already, or its parent cannot be written.
        StorageError: writing failed, for example because the disk is full.
    """
    temporary = _temporary(out)
    with _published(temporary, out):
        yield temporary
        for path in sorted(temporary.rglob("*")):
            _sync(path)
        _sync(temporary)


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """As `new_folder`, for one file: its temporary name, in a folder that is removed."""
    folder = _temporary(out)
    try:
        with _published(folder / out.name, out):
            yield folder / out.name
            _sync(folder / out.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(out: Path) -> Path:
    _check_absent(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Another name each time: two conversions to one OUT must not mix their files.
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
        folder.chmod(0o755)  # mkdtemp makes 0700; results are meant to be read by others
    except OSError as error:
        raise CannotCreateError(f"{out}: cannot be made ({error.strerror or error})") from None
    return folder


@contextlib.contextmanager
def _published(temporary: Path, out: Path) -> Iterator[None]:
    try:
        yield
        _check_absent(out)  # rename would replace a file, or an empty folder, without a word
        os.rename(temporary, out)
        fsync_folder(out.parent)
    except OSError as error:
        _remove(temporary)
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from None
    except BaseException:
        _remove(temporary)
        raise


def _check_absent(out: Path) -> None:
    if os.path.lexists(out):
        raise CannotCreateError(f"{out}: is there already; give another name or remove it")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if path.is_dir():
        fsync_folder(path)
        return
    with open(path, "rb") as file:
        os.fsync(file.fileno())
