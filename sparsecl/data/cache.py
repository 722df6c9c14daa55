"""Cache entries that are whole or absent, built once however many processes ask at the same time.

An entry is a folder `<root>/<group>/<name>-<digest>`. The digest covers everything that decides
its content, so an entry is never changed after it is published; a changed input is another entry.
Its manifest says what it was made for and vouches for itself, so an entry that was moved, renamed
or copied over another one is refused, and so is one of which a bit has flipped.
"""

import errno
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from sparsecl.errors import DataError, MissingInputError, StorageError, UserError
from sparsecl.files import cannot_write, fsync_folder, reason, sha256_text, write_json
from sparsecl.opening import NotPlainError, check_kind, make_folder, plain

MANIFEST = "manifest.json"

FORMAT = 3
"""Version of what is written below the cache root; part of every key."""

MAX_MANIFEST_BYTES = 256 << 20
"""A source of a million files has a manifest of this size."""

Build = Callable[[Path], dict[str, Any]]

_building: ContextVar[bool] = ContextVar("building", default=True)


class NotBuiltError(Exception):
    """An entry is absent, and none is built here."""


@contextmanager
def only_published() -> Iterator[None]:
    """Inside, `open_entry` opens what there is and raises NotBuiltError for what there is not."""
    before = _building.set(False)
    try:
        yield
    finally:
        _building.reset(before)


def open_entry(
    root: Path, group: str, name: str, key: Any, build: Build
) -> tuple[Path, dict[str, Any]]:
    """Folder and manifest of the entry whose content `key` decides, built first if it is absent.

    `build` gets an empty folder, writes its files there and returns the manifest. The folder is
    renamed at the end. A killed build leaves only a `.tmp` folder, which the next one removes, and
    a lock that the kernel releases with the process. A build that fails leaves nothing.

    Args:
        key: any JSON value.

    Raises:
        DataError: if the entry is damaged, is a link, or was made for another key.
        CannotCreateError, StorageError: if the cache folder cannot be written.
        NotBuiltError: if it is absent, inside `only_published`.
    """
    made_for = sha256_text(json.dumps([FORMAT, group, name, key], sort_keys=True))
    entry = root / group / f"{name}-{made_for[:16]}"
    # Published entries never change, so reading needs no lock: a read-only cache works.
    found = _read_manifest(entry, made_for)
    if found is not None:
        return entry, found
    if not _building.get():
        raise NotBuiltError(entry)
    try:
        root.mkdir(parents=True, exist_ok=True)
        make_folder(entry.parent)
        with FileLock(entry.with_name(f".{entry.name}.lock")):
            found = _read_manifest(entry, made_for)
            if found is None:
                _build(entry, made_for, build)
    except OSError as error:
        more = ". Or name another folder."
        raise cannot_write(entry.parent, error, "data.cache_dir", more) from None
    found = found or _read_manifest(entry, made_for)
    if found is None:
        raise DataError(f"{entry}: was removed just after it was built; start again")
    return entry, found


def _build(entry: Path, made_for: str, build: Build) -> None:
    for stale in entry.parent.glob(f".{entry.name}.*.tmp"):
        shutil.rmtree(stale)  # the lock is ours, so nobody writes there any more
    # The folder without a manifest can only be damage done from outside.
    shutil.rmtree(entry, ignore_errors=True)
    folder = entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}.tmp")
    folder.mkdir()
    try:
        write_json(folder / MANIFEST, sealed(build(folder), made_for))
        fsync_folder(folder)
        os.rename(folder, entry)
        fsync_folder(entry.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def sealed(manifest: dict[str, Any], made_for: str) -> dict[str, Any]:
    """The manifest with the digest of the entry's key, and its own."""
    whole = {**manifest, "made_for": made_for}
    return {**whole, "sha256": _digest(whole)}


def _digest(manifest: dict[str, Any]) -> str:
    return sha256_text(json.dumps(manifest, sort_keys=True))


def _read_manifest(entry: Path, made_for: str) -> dict[str, Any] | None:
    """The manifest of a published entry as it was built; None if there is none.

    Raises:
        DataError: if it is not what was written for this entry.
    """
    path = entry / MANIFEST
    at = path
    try:
        for at in (entry.parent, entry):
            check_kind(os.lstat(at), stat.S_ISDIR)
        at = path
        with open(path, "rb", opener=plain) as file:
            if os.fstat(file.fileno()).st_size > MAX_MANIFEST_BYTES:
                raise DataError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes; delete {entry}")
            manifest = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(at, error, entry if at == path else at) from None
    except (RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error}); delete {entry}") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: not a JSON object; delete {entry}")
    digest = manifest.pop("sha256", None)
    if digest != _digest(manifest):
        raise DataError(f"{path}: was changed, its sha256 is another; delete {entry}")
    if manifest.pop("made_for", None) != made_for:
        raise DataError(f"{entry}: was made for another domain or config, and moved; delete it")
    return manifest


def open_file(path: Path, *, buffering: int = -1) -> IO[bytes]:
    """Open a file of a published entry to be read; errors as `unreadable` makes them."""
    try:
        return open(path, "rb", buffering=buffering, opener=plain)
    except OSError as error:
        raise unreadable(path, error, path.parent) from None


def unreadable(path: Path, error: OSError, entry: Path) -> UserError:
    """The error of one line for a part of an entry that cannot be read: 65, 66 or 74."""
    text = reason(path, error)
    if isinstance(error, FileNotFoundError | NotPlainError):
        return DataError(f"{path}: missing or not a plain file ({text}); delete {entry}")
    denied = error.errno in (errno.EACCES, errno.EPERM)
    return (MissingInputError if denied else StorageError)(f"{path}: cannot be read ({text})")
