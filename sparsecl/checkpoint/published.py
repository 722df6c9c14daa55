"""Which checkpoints a run has published: the digests of their manifests, beside the folders.

The digests inside a checkpoint fit together also if somebody changed a number and computed them
anew, and no law can judge every number. So a step that stands on this list is taken only with a
manifest that the list names. A checkpoint that lies elsewhere, or beside no list, is judged by the
laws alone.

    published.jsonl   {"step": 40, "manifest": "<sha256 of manifest.json>"}, a line each

A step that is saved again has two lines. A line that cannot be read vouches for nothing.
"""

import json
import os
from pathlib import Path
from typing import Any

from sparsecl.checkpoint.manifest import MANIFEST
from sparsecl.files import fsync_folder, sha256_file, writing
from sparsecl.opening import plain, read_plain

PUBLISHED = "published.jsonl"


def note_published(folder: Path, step: int) -> None:
    """Put the manifest in `folder`, a sibling of the checkpoints, on the list, durably.

    To be called before the folder gets its name: there is no moment in which a checkpoint of the
    run is not on the list.

    Raises:
        CannotCreateError, StorageError: it cannot be written, and is named.
    """
    line = json.dumps({"step": step, "manifest": sha256_file(folder / MANIFEST)})
    path = folder.parent / PUBLISHED
    is_new = not path.exists()
    with writing(path), open(path, "ab", opener=plain) as file:
        if file.tell() and not read_plain(path).endswith(b"\n"):
            file.write(b"\n")  # a kill has torn the last line
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        fsync_folder(path.parent)


def published_steps(root: Path) -> set[int]:
    """The steps on the list of a checkpoints folder."""
    return {step for entry in _entries(root) if type(step := entry.get("step")) is int}


def is_foreign(folder: Path, step: int) -> bool:
    """True if the list names other manifests for this step, and not that of `folder`."""
    entries = _entries(folder.absolute().parent)
    named = {entry.get("manifest") for entry in entries if entry.get("step") == step}
    return bool(named) and sha256_file(folder / MANIFEST) not in named


def _entries(root: Path) -> list[dict[str, Any]]:
    try:
        return [_parse(line) for line in read_plain(root / PUBLISHED).splitlines()]
    except OSError:
        return []


def _parse(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
