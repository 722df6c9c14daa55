"""The manifest of a checkpoint, and whether a checkpoint is whole.

A checkpoint is a folder `step_<N>` with one safetensors file per writing rank, the topologies, and
`manifest.json`. Tensors are named in global coordinates: a `Piece` says which range of which tp
slice of which parameter's state lies where, so any layout can read what any other wrote. Of a
parameter on a topology only the live weights are there, whatever the storage that wrote it. The
manifest carries the sha256 of every file and of itself; a folder without a valid manifest does not
exist for the loader.

A digest guards against damage, not against somebody who computes it anew. So everything else in a
manifest is checked too (sparsecl/checkpoint/strict.py), before anything is allocated by it.
"""

import json
import os
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsecl.checkpoint import strict
from sparsecl.errors import DataError
from sparsecl.files import atomic_open, fsync_folder, sha256_file, sha256_text
from sparsecl.opening import read_plain

FORMAT = 4
MANIFEST = "manifest.json"
FOLDER_NAME = re.compile(r"step_(\d{1,18})", re.ASCII)
MAX_BYTES = 1 << 29
"""Of a manifest. 1 M pieces, say 500 matrices with 3 states on 600 ranks, are a fifth of it."""


class NewerFormatError(DataError):
    """A newer version wrote the checkpoint: no damage, so nobody passes it over or removes it."""


@dataclass(frozen=True)
class Piece:
    """A contiguous range of one state of one parameter, as one rank wrote it."""

    file: str
    """Name of the safetensors file; the key inside it is `<state>/<name>`."""

    state: str
    """"master", a moment's name such as "exp_avg", or a method's state such as "ewc.target"."""

    name: str
    """Parameter name."""

    tp_rank: int
    """Which tp slice; 0 for replicated parameters."""

    start: int
    """Where the range begins in the tp slice: flattened, or the vector of its live weights."""

    numel: int
    """Number of elements."""

    @property
    def key(self) -> str:
        """Key of the tensor in its file."""
        return f"{self.state}/{self.name}"


@dataclass(frozen=True)
class ParameterEntry:
    """Shape of one parameter before the tensor-parallel split."""

    shape: tuple[int, ...]
    """Global shape."""

    partition_dim: int
    """Dimension that tp splits; -1 = replicated."""

    live: bool = False
    """Only the live weights of each tp slice are kept, in row-major order; where they lie is in
    the checkpoint's topology file."""


@dataclass(frozen=True)
class Manifest:
    """All that is known of a checkpoint beside its tensors."""

    step: int
    tp_size: int
    files: dict[str, dict[str, Any]]
    """File name -> {"bytes": size, "sha256": hex}."""

    parameters: dict[str, ParameterEntry]
    pieces: tuple[Piece, ...]
    state: dict[str, Any]
    """Position, counters, scaler, method values, digests, config: see engine/resume/state.py."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with its own sha256, durably."""
    body = {
        "format": FORMAT,
        "step": manifest.step,
        "tp_size": manifest.tp_size,
        "files": manifest.files,
        "parameters": {name: asdict(entry) for name, entry in manifest.parameters.items()},
        "pieces": [list(asdict(piece).values()) for piece in manifest.pieces],
        "state": manifest.state,
    }
    text = _text({"sha256": _own_digest(body), **body})
    with atomic_open(folder / MANIFEST) as file:
        file.write(text)
    fsync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a checkpoint folder.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    path = folder / MANIFEST
    body = _own_body(path)
    _check_format(path, body)
    try:
        manifest = Manifest(
            step=strict.count(body, "step"),
            tp_size=strict.count(body, "tp_size", low=1, high=1 << 20),
            files=strict.files(body),
            parameters={
                name: ParameterEntry(*entry) for name, entry in strict.parameters(body).items()
            },
            pieces=tuple(Piece(*fields) for fields in strict.pieces(body)),
            state=strict.mapping(body, "state"),
        )
    except strict.NotStrictError as error:
        raise DataError(f"{path}: {error}") from None
    named = FOLDER_NAME.fullmatch(folder.name)
    if named and int(named[1]) != manifest.step:
        raise DataError(f"{path}: it is of step {manifest.step}, not of {folder.name}")
    return manifest


def verify(folder: Path) -> Manifest:
    """Read the manifest and check size and sha256 of every file it names.

    What else lies in the folder is never read; only a further shard is refused, as a sign that two
    checkpoints were mixed.

    Raises:
        DataError: naming the first file that is missing, linked, truncated, changed or too many.
    """
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    for name, entry in manifest.files.items():
        if sha256_file(folder / name) != entry["sha256"]:
            raise DataError(f"{folder / name}: sha256 differs from the manifest")
    for name in sorted(os.listdir(folder)):
        if strict.FILE_NAME.fullmatch(name) and name not in manifest.files:
            raise DataError(f"{folder / name}: the manifest does not know this file")
    return manifest


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """What can be checked of a checkpoint's files without reading them.

    Raises:
        DataError: naming the first file that is missing, linked or of another size.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if not is_plain_file(path):
            raise DataError(f"{path}: missing or not a plain file")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DataError(f"{path}: {size} bytes, manifest says {entry['bytes']}")


def is_newer(folder: Path) -> bool:
    """True if a newer version of sparsecl has written this checkpoint, as far as can be told."""
    try:
        read_manifest(folder)
    except NewerFormatError:
        return True
    except (DataError, OSError):
        pass
    return False


def is_plain_file(path: Path) -> bool:
    """True if `path` itself is a file: no link, no pipe that would make a reader wait."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _own_body(path: Path) -> dict[str, Any]:
    """What the manifest says beside its own digest, after that was checked."""
    try:
        if not os.path.lexists(path):
            raise DataError(f"{path}: not there; the checkpoint was never finished")
        if not is_plain_file(path) or path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: not a plain file of at most {MAX_BYTES} bytes")
        text = read_plain(path).decode("utf-8")
        whole = json.loads(text)
        if not isinstance(whole, dict) or "sha256" not in whole:
            raise DataError(f"{path}: not a readable manifest (no sha256)")
        body = {key: value for key, value in whole.items() if key != "sha256"}
        _check_not_newer(path, body)  # before its digest, which may be made in another way
        # The digest is over the content. The text too must be what is written for that content, so
        # that a lost newline, a repeated key or a NaN does not go unseen.
        if whole["sha256"] != _own_digest(body) or text != _text(whole):
            raise DataError(f"{path}: its sha256 does not match its content")
        return body
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable manifest ({type(error).__name__})") from None


def _check_not_newer(path: Path, body: dict[str, Any]) -> None:
    found = body.get("format")
    if type(found) is int and found > FORMAT:
        raise NewerFormatError(
            f"{path}: format {str(found)[:40]}, this version reads {FORMAT}: made by a newer "
            f"version of sparsecl. Go on with that one, or move {path.parent} away."
        )


def _check_format(path: Path, body: dict[str, Any]) -> None:
    found = body.get("format")
    if found == FORMAT and type(found) is int:
        return
    if type(found) is int and found > 0:
        why = "made by an older version of sparsecl; read it with that one"
    else:
        why = "no version ever wrote that"
    raise DataError(f"{path}: format {str(found)[:40]}, this version reads {FORMAT}: {why}")


def _text(whole: dict[str, Any]) -> str:
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"


def _own_digest(body: dict[str, Any]) -> str:
    return sha256_text(json.dumps(body, sort_keys=True))
