"""Files that are either whole or absent, their digests, and what to say if one cannot be written.

What is written gets the rights that the umask leaves.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from sparsecl.config_nodes import one_line
from sparsecl.errors import CannotCreateError, MissingInputError, StorageError, UserError
from sparsecl.opening import NotPlainError, check_kind, is_folder, plain

# A name or a right is missing; whatever else goes wrong is the disk's doing.
_CANNOT_CREATE = frozenset(
    getattr(errno, name)
    for name in "EACCES EEXIST EISDIR ELOOP EMLINK ENAMETOOLONG ENOENT ENOTDIR ENOTEMPTY ENXIO "
    "EPERM EROFS".split()
)
# What the system says even to the question whether a file is there.
_UNREACHABLE = frozenset((errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP))
_HELD = ".held"  # in a temporary folder: locked while its maker lives
_FULL = (errno.ENOSPC, errno.EDQUOT)
_GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.ENODEV)


def check_entries(folder: Path, *, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Refuse links, pipes and the like in the place of files and folders that may be there.

    Args:
        files: names below `folder`, as are `folders`. Of a/b name a too.

    Raises:
        CannotCreateError: with the path and what is there.
    """
    wanted = [(name, stat.S_ISREG) for name in files] + [(name, stat.S_ISDIR) for name in folders]
    for name, is_right in wanted:
        path = folder / name
        try:
            check_kind(os.lstat(path), is_right)
        except NotPlainError as error:
            raise CannotCreateError(
                one_line(f"{path}: {error.strerror}. Remove it, or use another folder.")
            ) from None
        except OSError:  # not there, or what comes later will say why not
            continue


def check_output(option: str, path: Path) -> None:
    """Refuse a file that could not be written, before the work that it is to hold.

    Args:
        option: what named it, for the error.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise CannotCreateError(one_line(f"{option} {path}: cannot be written; name another file"))


def cannot_write(path: Path, error: OSError, option: str = "", more: str = "") -> UserError:
    """The error of one line for a file or folder that cannot be written: 73 or 74.

    Args:
        option: how the user named it.
        more: what is said behind the reason.
    """
    kind = CannotCreateError if error.errno in _CANNOT_CREATE else StorageError
    what = f"{option} {path}".lstrip()
    return kind(one_line(f"{what}: cannot be written ({reason(path, error)}){more}"))


def reason(path: Path, error: OSError) -> str:
    """Why `path` cannot be written or read, and the way out if the disk is full."""
    if error.errno in _GONE and not isinstance(error, NotPlainError):
        missing = [parent for parent in path.absolute().parents if not os.path.exists(parent)]
        if missing:
            return f"there is no folder {missing[-1]}: was it removed, renamed or unmounted?"
    in_the_way = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not in_the_way.is_dir():
        return f"{in_the_way} is no folder"
    text = error.strerror or str(error) or type(error).__name__
    return f"{text}; make room" if error.errno in _FULL else text


def out_of_reach(error: BaseException) -> UserError | None:
    """`error`, or what it came from, as a path that cannot be looked at; None = something else.

    A folder of somebody else, a name that is too long, links in a circle, a NUL character: pathlib
    raises already when it is asked whether such a path exists, and that is asked in many places.
    """
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        if isinstance(error.filename, str | bytes | os.PathLike):
            name = os.fsdecode(error.filename)
            return MissingInputError(one_line(f"{name}: cannot be reached ({error.strerror})"))
    if isinstance(error, ValueError) and str(error).startswith("embedded null "):
        return UserError("a path contains a NUL character, which no file's name can. Remove it.")
    return out_of_reach(error.__cause__) if error.__cause__ is not None else None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong with the disk in here is a CannotCreateError or StorageError of `path`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path` and rename it over `path` on success, after fsync.

    On an exception the temporary file is removed and `path` is left as it was. One that a kill left
    is removed by the next call for that path.

    Raises:
        CannotCreateError, StorageError: for every OSError, those of the caller's block included;
            something that is no plain file is not replaced.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            check_kind(os.lstat(path), stat.S_ISREG)
        remove_leftovers(path.parent, path.name)
        while (handle := _new_locked(name := temporary_name(path))) is None:
            pass
        try:
            with os.fdopen(handle, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(name, path)  # still locked: nobody takes it for left over
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        fsync_folder(path.parent)


@contextlib.contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """A new hidden folder next to `beside`, removed at the end with all in it.

    What is made in it can be renamed to `beside`: it is on the same disk. One that a kill left is
    removed by the next call for that path.

    Raises:
        CannotCreateError, StorageError: it cannot be made.
    """
    with writing(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(beside.parent, beside.name)
        handle = None
        while handle is None:
            folder = temporary_name(beside)
            os.mkdir(folder)
            with contextlib.suppress(FileNotFoundError):  # taken for left over while it was empty
                handle = _new_locked(folder / _HELD)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def temporary_name(path: Path) -> Path:
    """A new hidden name beside `path`, as `remove_leftovers` finds it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files and folders whose writers have died; what cannot be removed stays.

    Args:
        name: of the file or folder that they were to become; None = any.
    """
    wanted = re.compile(rf"\.{re.escape(name) if name else '.+'}\.[0-9a-f]{{16}}\.tmp", re.DOTALL)
    with contextlib.suppress(OSError):
        for found in os.listdir(folder):
            if wanted.fullmatch(found):
                _remove_left(folder / found)


def _remove_left(path: Path) -> None:
    inside = is_folder(path)
    try:
        with open(path / _HELD if inside else path, "r+b", opener=plain) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
            shutil.rmtree(path) if inside else os.unlink(path)
    except FileNotFoundError:
        if inside:
            with contextlib.suppress(OSError):
                os.rmdir(path)  # killed between its first two steps
    except OSError:
        return


def _new_locked(path: Path) -> int | None:
    """A new file, open and locked; None if it was taken for left over before it was locked."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = not os.path.lexists(path)
    except BlockingIOError:
        taken = True
    except OSError:
        taken = False  # a file system without locks: nobody can take it
    if not taken:
        return handle
    os.close(handle)
    return None


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `json_text(value)`, atomically."""
    text = json_text(value)
    with atomic_open(path) as file:
        file.write(text)


def json_text(value: Any) -> str:
    """Indented JSON. NaN and infinity are refused."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb", opener=plain) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex digest of a string's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
