"""Publication: a checkpoint is either whole and named, or does not exist.

Order of events: shards into `step_N.tmp`, each synced; all ranks report size and sha256; rank 0
writes the manifest, syncs, renames the folder, syncs its parent, replaces `latest`, and only then
removes what retention gives up. A kill between any two of these leaves the previous checkpoint
valid and named, or the new one whole. A checkpoint that is saved again steps aside as `step_N.old`,
which a loader takes as well, so that there is no moment without any.

Each border between two events is a point of sparsecl/faults.py.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist

from sparsecl import dist, faults
from sparsecl.checkpoint.arrays import METHODS_FILE
from sparsecl.checkpoint.manifest import (
    FOLDER_NAME,
    MANIFEST,
    Manifest,
    NewerFormatError,
    ParameterEntry,
    Piece,
    check_sizes,
    is_newer,
    is_plain_file,
    verify,
    write_manifest,
)
from sparsecl.checkpoint.published import note_published
from sparsecl.checkpoint.shards import write_shard
from sparsecl.checkpoint.topologies import TOPOLOGY_FILE, stored_form
from sparsecl.errors import CannotCreateError, DataError, StorageError
from sparsecl.files import atomic_open, fsync_folder, writing
from sparsecl.opening import is_folder, make_folder, plain
from sparsecl.topology.layer import LayerTopology

LATEST = "latest"
_CANDIDATE = re.compile(r"step_(\d{1,18})(\.old)?", re.ASCII)
_LEFTOVER = re.compile(r"step_\d{1,18}(\.old)?\.tmp", re.ASCII)


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
    arrays: Mapping[str, torch.Tensor] | None = None,
    group: torch_dist.ProcessGroup | None = None,
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
        arrays: of methods and observers (arrays.py); rank 0's count.
        group: all ranks, for a thread that must not use the world's group (dist.side_group).

    Returns:
        The folder of the new checkpoint.

    Raises:
        StorageError: on all ranks, if the disk of any was full or failed. Nothing half-written is
            left; what was published before still is.
        CannotCreateError: on all ranks, if a file or folder cannot be made.
    """
    target, temporary = root / f"step_{step}", root / f"step_{step}.tmp"
    shard = f"rank_{dist.rank()}.safetensors"
    try:
        dist.agree(lambda: _begin(target, temporary), group=group)
        written = dist.agree(
            lambda: _write(temporary, shard, tensors, topologies, arrays), group=group
        )
        reports = dist.gather_objects((written, list(pieces)), group=group)
        manifest = Manifest(
            step=step,
            tp_size=dist.tp_size(),
            files={name: entry for files, _ in reports for name, entry in files.items()},
            parameters=parameters,
            pieces=tuple(piece for _, some in reports for piece in some),
            state=state,
        )
        dist.agree(lambda: _name(temporary, target, manifest, temporary / shard), group=group)
    except Exception:
        # What one rank fails in, all hear of before any goes on, so nobody writes there any more.
        if dist.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    dist.agree(lambda: _retain(root, target, keep, target / shard), group=group)
    return target


def newest_valid(
    root: Path, check: Callable[[Path], Any] = verify
) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, and a line for everything that was passed over.

    `latest` is a hint for people; what counts is a whole checkpoint. Nothing is changed. Local
    (rank 0 decides for all).

    Args:
        check: raises DataError for a checkpoint that is not to be taken.

    Raises:
        NewerFormatError: a newer version has been at work here. To go on from an older checkpoint
            would throw away what that one did.
    """
    notes: list[str] = []
    for folder in candidates(root):
        try:
            check(folder)
        except NewerFormatError:
            raise
        except (DataError, OSError) as error:
            notes.append(f"passed over: {error}")
            continue
        hint = _hint(root, folder)
        return folder, notes + ([hint] if hint else [])
    return None, notes


def candidates(root: Path) -> list[Path]:
    """Folders with a checkpoint's name, newest first; links and temporary folders are not.

    `step_N.old`, which a kill may have left while N was saved again, comes after `step_N`.
    """
    if not is_folder(root):
        return []
    found = [
        (int(name[1]), not name[2], path)
        for path in root.iterdir()
        if (name := _CANDIDATE.fullmatch(path.name)) and is_folder(path)
    ]
    return [path for *_, path in sorted(found, reverse=True)]


def _hint(root: Path, found: Path) -> str | None:
    """A line if `latest` does not name `found`, and that is not because of damage."""
    path = root / LATEST
    if not os.path.lexists(path):
        return None
    try:
        if not is_plain_file(path):
            return f"{path}: ignored, not a plain file; the newest whole checkpoint is {found.name}"
        with open(path, "rb", opener=plain) as file:
            text = file.read(100).decode("utf-8", "replace")
    except OSError as error:
        return f"{path}: ignored, cannot be read ({error.strerror or error})"
    named = text.removesuffix("\n")
    if named == found.name or (FOLDER_NAME.fullmatch(named) and (root / named).is_dir()):
        return None  # it, one that is older, or one that was just passed over
    what = "empty" if not named else f"it says {named[:40]!a}, which is no checkpoint here"
    return f"{path}: ignored, {what}; the newest whole checkpoint is {found.name}"


def _begin(target: Path, temporary: Path) -> None:
    """An empty temporary folder, and no leftovers of saves that were killed."""
    root = target.parent
    with writing(temporary):
        faults.point("save.begin")
    if dist.rank() > 0:
        return
    if is_newer(target):
        raise CannotCreateError(
            f"{target}: is of a newer version of sparsecl and is not replaced. Move it away."
        )
    with writing(root):
        make_folder(root)  # not the run folder: if that is gone, the run must not begin another
    with writing(temporary):
        for path in root.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                _remove(path)
        temporary.mkdir()
        fsync_folder(root.parent)


def _remove(path: Path) -> None:
    if is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(
    folder: Path,
    shard: str,
    tensors: Mapping[str, torch.Tensor],
    topologies: Mapping[str, LayerTopology] | None,
    arrays: Mapping[str, torch.Tensor] | None,
) -> dict[str, dict[str, Any]]:
    """This rank's files, by name, as the manifest lists them."""
    files = {}
    if dist.rank() == 0 and topologies:
        stored = stored_form(topologies)
        live = {name: torch.from_numpy(array) for name, array in stored.items()}
        files[TOPOLOGY_FILE] = write_shard(folder / TOPOLOGY_FILE, live)
    if dist.rank() == 0 and arrays:
        files[METHODS_FILE] = write_shard(folder / METHODS_FILE, arrays)
    if tensors:
        files[shard] = write_shard(folder / shard, tensors)
    if files:
        with writing(folder):
            fsync_folder(folder)
    return files


def _name(temporary: Path, target: Path, manifest: Manifest, shard: Path) -> None:
    """The manifest, and the name; rank 0's work."""
    with writing(target):
        faults.point("save.reported", path=shard)
        if dist.rank() > 0:
            return
        _check_visible(temporary, manifest)
        write_manifest(temporary, manifest)
        faults.point("save.manifest", path=temporary / MANIFEST)
        note_published(temporary, manifest.step)
        _rename(temporary, target)
        fsync_folder(target.parent)
        faults.point("save.renamed", path=target / MANIFEST)
        with atomic_open(target.parent / LATEST) as latest:
            latest.write(target.name + "\n")
        faults.point("save.latest", path=target / MANIFEST)


def _check_visible(folder: Path, manifest: Manifest) -> None:
    """What every rank has written must be there for the rank that gives it a name."""
    try:
        check_sizes(folder, manifest)
    except DataError as error:
        raise StorageError(
            f"{error}, seen from rank 0. Is the run folder on a disk that all nodes share?"
        ) from None


def _rename(temporary: Path, target: Path) -> None:
    """Give the folder its name; a checkpoint of that name steps aside until that is done."""
    aside = target.with_name(f"{target.name}.old")
    if not target.exists():
        os.rename(temporary, target)
        return
    if aside.exists():  # of a kill in an earlier save of this step, which `target` came after
        _discard(aside)
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(aside, target)
        raise


def _retain(root: Path, published: Path, keep: int, shard: Path) -> None:
    """Remove all but `published` and the `keep` - 1 before it; rank 0's work.

    A later step is of a future that a resume gave up because that checkpoint was not whole. Were it
    counted, it would take the place of a whole one. What a newer version wrote is neither counted
    nor removed; what cannot be removed is left for next time.
    """
    if dist.rank() == 0:
        folders = [path for path in candidates(root) if not is_newer(path)]
        aside = [path for path in folders if path.suffix and path.with_suffix("") in folders]
        folders = [path for path in folders if path not in aside]
        place = folders.index(published)
        for path in aside + folders[:place] + folders[place + keep :]:
            _discard(path)
    with writing(published):
        faults.point("save.retained", path=shard)


def _discard(folder: Path) -> None:
    """Remove a checkpoint; first its name, so that a kill leaves none that is half there."""
    gone = folder.with_name(f"{folder.name}.tmp")
    try:
        os.rename(folder, gone)
    except OSError:
        return
    shutil.rmtree(gone, ignore_errors=True)
