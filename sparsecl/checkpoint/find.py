"""Which checkpoint a path stands for: a checkpoint folder, a run folder, its checkpoints folder."""

import os
from dataclasses import dataclass
from pathlib import Path

from sparsecl.checkpoint.manifest import FOLDER_NAME, MANIFEST, verify
from sparsecl.errors import DataError, MissingInputError

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Found:
    """A checkpoint whose digests were all checked."""

    folder: Path

    run: Path | None
    """The run folder above it, where there is one; a converted checkpoint stands alone."""

    notes: tuple[str, ...]
    """One line for each choice that the user did not make."""


def find_checkpoint(path: Path) -> Found:
    """The checkpoint that was named, or the newest valid one of a run.

    Raises:
        MissingInputError: there is no such folder, or no checkpoint in it.
        DataError: the named checkpoint, or every one of the run, is damaged.
    """
    if is_checkpoint(path):
        try:
            verify(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        return Found(path, run_above(path), ())
    # Imported here: it brings torch.distributed and Megatron along, which takes seconds.
    from sparsecl.checkpoint.publish import newest_valid

    root = _root(path)
    newest, notes = newest_valid(root)
    if newest is None and notes:
        raise DataError(f"{path}: no checkpoint is valid; {notes[0]}")
    if newest is None:
        raise MissingInputError(f"{path}: holds no checkpoint; give a run or a checkpoint folder")
    line = f"{path}: its newest valid checkpoint is {newest.name}"
    return Found(newest, run_above(newest), (*notes, line))


def all_checkpoints(path: Path) -> list[Path]:
    """The checkpoint that was named, or all of a run, oldest first. None of them is opened.

    Raises:
        MissingInputError: there is no such folder, or no checkpoint in it.
    """
    if is_checkpoint(path):
        return [path]
    from sparsecl.checkpoint.publish import candidates

    found = candidates(_root(path))[::-1]
    if not found:
        raise MissingInputError(f"{path}: holds no checkpoint; give a run or a checkpoint folder")
    return found


def is_checkpoint(path: Path) -> bool:
    """True if a folder is, by its name or its content, a checkpoint and not a run.

    Raises:
        MissingInputError: it is not there, or no folder.
    """
    if not path.is_dir():
        raise MissingInputError(f"{path}: no such run folder or checkpoint folder")
    if os.path.lexists(path / MANIFEST):
        return True
    # Of a link, its own name and that of its end: either may be the one that a run gave.
    return any(map(FOLDER_NAME.fullmatch, (path.absolute().name, path.resolve().name)))


def run_above(checkpoint: Path) -> Path | None:
    """RUN of RUN/checkpoints/step_N, if it is a run folder."""
    above = (path.parent.parent for path in (checkpoint.absolute(), checkpoint.resolve()))
    return next((run for run in above if (run / CONFIG).is_file()), None)


def _root(path: Path) -> Path:
    inner = path / "checkpoints"
    return inner if inner.is_dir() else path
