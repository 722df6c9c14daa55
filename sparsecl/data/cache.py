"""Cache entries that are whole or absent, built once however many processes ask at the same time.

An entry is a folder `<root>/<group>/<name>-<digest>`. The digest covers everything that decides
its content, so an entry is never changed after it is published; a changed input is another entry.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from sparsecl.errors import CannotCreateError, DataError
from sparsecl.files import fsync_folder, sha256_text, write_json

MANIFEST = "manifest.json"

FORMAT = 1
"""Version of what is written below the cache root; part of every key."""

MAX_MANIFEST_BYTES = 64 << 20
"""A source of a million files has a manifest of this size."""

Build = Callable[[Path], dict[str, Any]]


def entry_path(root: Path, group: str, name: str, key: Any) -> Path:
    """Folder of the entry whose content is decided by `key`, any JSON value."""
    digest = sha256_text(json.dumps([FORMAT, key], sort_keys=True))
    return root / group / f"{name}-{digest[:16]}"


def build_once(entry: Path, build: Build) -> dict[str, Any]:
    """Return the manifest of `entry`, building the entry first if it is absent.

    `build` gets an empty folder, writes its files there and returns the manifest. The folder is
    renamed to `entry` at the end. A killed build leaves only a `.tmp` folder, which the next one
    removes, and a lock that the kernel releases with the process.

    Raises:
        CannotCreateError: if the cache folder cannot be written.
    """
    # Published entries never change, so reading needs no lock: a read-only cache works.
    if (entry / MANIFEST).is_file():
        return read_manifest(entry)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.with_name(f".{entry.name}.lock")):
            if not (entry / MANIFEST).is_file():
                _build(entry, build)
    except OSError as error:
        raise CannotCreateError(
            f"data.cache_dir: cannot write {entry.parent}: {error.strerror or error}; "
            f"choose another folder or free some space"
        ) from error
    return read_manifest(entry)


def _build(entry: Path, build: Build) -> None:
    for stale in entry.parent.glob(f".{entry.name}.*.tmp"):
        shutil.rmtree(stale)  # the lock is ours, so nobody writes there any more
    # The folder without a manifest can only be damage done from outside.
    shutil.rmtree(entry, ignore_errors=True)
    folder = entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}.tmp")
    folder.mkdir()
    try:
        manifest = build(folder)
        write_json(folder / MANIFEST, manifest)
        fsync_folder(folder)
        os.rename(folder, entry)
        fsync_folder(entry.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read_manifest(entry: Path) -> dict[str, Any]:
    """The manifest of a published entry.

    Raises:
        DataError: if it is not a JSON object.
    """
    try:
        with open(entry / MANIFEST, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_MANIFEST_BYTES:
                raise ValueError(f"larger than {MAX_MANIFEST_BYTES} bytes")
            manifest = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{entry / MANIFEST}: not JSON ({error}); delete {entry}") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{entry / MANIFEST}: not a JSON object; delete {entry}")
    return manifest
