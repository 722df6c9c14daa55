"""The manifest of a checkpoint, and whether a checkpoint is whole.

A checkpoint is a folder `step_<N>` with one safetensors file per writing rank, the topologies, and
`manifest.json`. Tensors are named in global coordinates: a `Piece` says which range of which tp
slice of which parameter's state lies where, so any layout can read what any other wrote. Of a
parameter on a topology only the live weights are there, whatever the storage that wrote it. The
manifest carries the sha256 of every file and of itself; a folder without a valid manifest does not
exist for the loader.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsecl.errors import DataError
from sparsecl.files import fsync_folder, sha256_file, sha256_text, write_json

FORMAT = 2
MANIFEST = "manifest.json"
FOLDER_NAME = re.compile(r"step_(\d{1,18})")
_FILE_NAME = re.compile(r"(rank_\d{1,9}|topology)\.safetensors")


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
    """Position, counters, scaler, method values, digests, config: see engine/state.py."""


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
    write_json(folder / MANIFEST, {"sha256": _own_digest(body), **body})
    fsync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a checkpoint folder.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        claimed = body.pop("sha256")
        if body["format"] != FORMAT:
            raise DataError(f"{path}: format {body['format']}, this version reads {FORMAT}")
        if claimed != _own_digest(body):
            raise DataError(f"{path}: its sha256 does not match its content")
        manifest = Manifest(
            step=int(body["step"]),
            tp_size=int(body["tp_size"]),
            files=dict(body["files"]),
            parameters={
                name: ParameterEntry(
                    tuple(entry["shape"]), int(entry["partition_dim"]), bool(entry["live"])
                )
                for name, entry in body["parameters"].items()
            },
            pieces=tuple(Piece(*fields) for fields in body["pieces"]),
            state=dict(body["state"]),
        )
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: not there; the checkpoint was never finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a readable manifest ({type(error).__name__})") from None
    if any(not _FILE_NAME.fullmatch(name) for name in manifest.files):
        raise DataError(f"{path}: names a file outside its folder")
    return manifest


def verify(folder: Path) -> Manifest:
    """Read the manifest and check size and sha256 of every file it names.

    Raises:
        DataError: naming the first file that is missing, linked, truncated or changed.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise DataError(f"{path}: missing or not a plain file")
        if path.stat().st_size != entry["bytes"]:
            raise DataError(f"{path}: {path.stat().st_size} bytes, manifest says {entry['bytes']}")
        if sha256_file(path) != entry["sha256"]:
            raise DataError(f"{path}: sha256 differs from the manifest")
    return manifest


def _own_digest(body: dict[str, Any]) -> str:
    return sha256_text(json.dumps(body, sort_keys=True))
