"""Files that are either whole or absent, and their digests."""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sparsecl.errors import CannotCreateError


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary sibling of `path` and rename it over `path` on success, after fsync.

    On an exception the temporary file is removed and `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        os.fchmod(handle, 0o644)  # mkstemp makes 0600; results are meant to be read by others
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    fsync_folder(path.parent)


def lock_folder(folder: Path, option: str) -> IO[str]:
    """Make a folder and hold it until the returned file is closed.

    The lock is the kernel's (flock), so it is gone when its owner is, however it died.

    Args:
        option: how the user named the folder, for errors.

    Raises:
        CannotCreateError: no permission, no space, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+", encoding="utf-8")
    except OSError as error:
        raise CannotCreateError(
            f"{option} {folder}: cannot be written ({error.strerror})"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise CannotCreateError(
            f"{option} {folder}: in use by {owner}. Wait for it, or use another folder."
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic_open(path) as file:
        file.write(text)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex digest of a string's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
