"""Publication: a checkpoint is either whole and named, or does not exist.

Order of events: shards into `step_N.tmp`, each synced; all ranks report size and sha256; rank 0
writes the manifest, syncs, renames the folder, syncs its parent, replaces `latest`, and only then
removes what retention gives up. A kill between any two of these leaves the previous checkpoint
valid and named, or the new one whole.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sparsecl import dist
from sparsecl.checkpoint.manifest import (
    FOLDER_NAME,
    Manifest,
    ParameterEntry,
    Piece,
    verify,
    write_manifest,
)
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE, save_topologies
from sparsecl.errors import CannotCreateError, DataError
from sparsecl.files import atomic_open, fsync_folder, sha256_file
from sparsecl.topology.layer import LayerTopology

LATEST = "latest"


def publish(
    root: Path,
    step: int,
    tensors: dict[str, torch.Tensor],
    pieces: Sequence[Piece],
    parameters: dict[str, ParameterEntry],
    state: dict[str, Any],
    *,
    keep: int,
    topologies: Mapping[str, LayerTopology] | None = None,
) -> Path:
    """Save one checkpoint. Collective over the world.

    Args:
        root: the `checkpoints` folder of the run.
        tensors: this rank's tensors by `Piece.key`; may be empty.
        pieces: what they are.
        parameters: global shapes, equal on all ranks.
        state: JSON-safe; rank 0's is written.
        keep: how many checkpoints stay.
        topologies: global live sets by parameter name, of all entries with `live`; rank 0's count.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CannotCreateError: on all ranks, if any rank could not write; nothing is published.
    """
    target, temporary = root / f"step_{step}", root / f"step_{step}.tmp"
    dist.agree(lambda: _fresh_folder(temporary), only_first=True)
    file = f"rank_{dist.rank()}.safetensors"
    entry = dist.agree(lambda: _write_shard(temporary / file, tensors))
    reports = dist.gather_objects((file, entry, list(pieces)))
    written = dist.agree(
        lambda: _write_topologies(temporary / TOPOLOGY_FILE, topologies or {}), only_first=True
    )
    manifest = Manifest(
        step=step,
        tp_size=dist.tp_size(),
        files={
            name: found
            for name, found in [(TOPOLOGY_FILE, written), *((n, f) for n, f, _ in reports)]
            if found
        },
        parameters=parameters,
        pieces=tuple(piece for _, _, some in reports for piece in some),
        state=state,
    )

    dist.agree(lambda: _name(temporary, target, manifest, keep), only_first=True)
    return target


def newest_valid(root: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, and a line for everything that was passed over.

    `latest` is a hint; what counts is a whole checkpoint. Local (rank 0 decides for all).
    """
    notes: list[str] = []
    for folder in candidates(root):
        try:
            verify(folder)
            return folder, notes
        except (DataError, OSError) as error:
            notes.append(f"passed over: {error}")
    return None, notes


def candidates(root: Path) -> list[Path]:
    """Folders with a checkpoint's name, newest first; links and temporary folders are not."""
    if not root.is_dir():
        return []
    found = [
        path
        for path in root.iterdir()
        if FOLDER_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def _fresh_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what a killed save left
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be made ({error.strerror})") from None


def _write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any] | None:
    on_cpu = {key: tensor.contiguous().cpu() for key, tensor in tensors.items()}
    return _durably(path, lambda: save_file(on_cpu, path)) if tensors else None


def _write_topologies(path: Path, topologies: Mapping[str, LayerTopology]) -> dict[str, Any] | None:
    return _durably(path, lambda: save_topologies(path, topologies)) if topologies else None


def _durably(path: Path, write: Callable[[], None]) -> dict[str, Any]:
    """Write and sync a file; its size and sha256."""
    try:
        write()
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise CannotCreateError(f"{path}: cannot be written ({error})") from None
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _name(temporary: Path, target: Path, manifest: Manifest, keep: int) -> None:
    """The last part of a publication: the manifest, the name, and what retention gives up."""
    root = target.parent
    replaced = root / f"{target.name}.old.tmp"
    try:
        write_manifest(temporary, manifest)
        if target.exists():  # the same step again, after a resume from an older checkpoint
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(target, replaced)
        os.rename(temporary, target)
        fsync_folder(root)
        shutil.rmtree(replaced, ignore_errors=True)
        with atomic_open(root / LATEST) as latest:
            latest.write(target.name + "\n")
    except OSError as error:
        raise CannotCreateError(f"{target}: cannot be published ({error.strerror})") from None
    _retain(root, target, keep)


def _retain(root: Path, published: Path, keep: int) -> None:
    """Remove all but `published` and the `keep` - 1 before it.

    A newer one is of a future that a resume gave up because that checkpoint was not whole. Were it
    counted, it would take the place of a whole one.
    """
    folders = candidates(root)
    place = folders.index(published)
    for folder in folders[:place] + folders[place + keep :]:
        shutil.rmtree(folder, ignore_errors=True)
