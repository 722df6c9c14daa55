"""The run folder: made, locked, and described. The only interface to everything offline."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsecl.checkpoint.published import published_steps
from sparsecl.config_nodes import one_line
from sparsecl.engine.resume.environment import environment
from sparsecl.errors import DataError
from sparsecl.files import atomic_open, check_entries, remove_leftovers, write_json
from sparsecl.locks import FolderLock, lock_folder
from sparsecl.metrics.records import SCALARS
from sparsecl.opening import read_plain
from sparsecl.seal import readable_lines

FILES = (
    "config.yaml",
    "ds_config.json",
    "environment.json",
    "scalars.jsonl",
    "results.json",
    "attempts.jsonl",
    "log.txt",
    "forgetting.png",
    "interference.json",
)
FOLDERS = ("checkpoints", "diagnostics", "initial", "kept", "tb", "wandb")


class RunFolder:
    """A run folder held by this process until it ends."""

    def __init__(self, path: Path) -> None:
        """Make the folder if needed, lock it, and remove what killed runs left half-written in it.

        Raises:
            CannotCreateError, StorageError: no permission, no space, another run holds it, or
                something else has the name of a file or folder of a run.
        """
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._is_new = not os.path.exists(path)  # what is wrong with it is said where it is made
        self._lock: FolderLock = lock_folder(path, "--run_dir")
        try:
            check_entries(path, files=FILES, folders=FOLDERS)
        except BaseException:
            self._lock.close()
            raise
        for folder in (path, path / "diagnostics"):
            remove_leftovers(folder)

    def has_run(self) -> bool:
        """True if a run has begun here."""
        return (self.path / "scalars.jsonl").exists()

    def check_unbegun(self) -> list[str]:
        """Refuse to begin anew over a run whose checkpoints are gone.

        A run that was killed before its first checkpoint begins anew, for it has nothing to go on
        from. But whoever has begun its third phase, ended, or put two checkpoints on the list had
        one: a save may still be on its way in the phase after it, and a checkpoint is on the list a
        moment before it has its name.

        Returns:
            What to say of records that are given up: one line or none.

        Raises:
            DataError: a checkpoint was there.
        """
        steps, had_one = 0, len(published_steps(self.checkpoints)) > 1
        for record in self._records():
            kind, phase = record.get("kind"), record.get("phase")
            steps = max(steps, record["step"]) if type(record.get("step")) is int else steps
            had_one |= kind == "end" or (kind == "phase" and type(phase) is int and phase > 1)
        if had_one:
            text = (
                f"{self.checkpoints}: no checkpoint is left of the run in this folder, which went"
            )
            way_out = "Restore one, or start in another --run_dir; to give that run up, remove"
            raise DataError(one_line(f"{text} to step {steps}. {way_out} {self.path}."))
        return [f"begins anew: {steps} steps in {SCALARS}, and no checkpoint"] if steps else []

    def _records(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            yield from readable_lines(read_plain(self.path / SCALARS))

    def is_complete(self) -> bool:
        """True if a run has ended here."""
        return (self.path / "results.json").exists()

    def describe(self, config_yaml: str, ds_config: Mapping[str, Any]) -> None:
        """Write config.yaml, ds_config.json (resolved: no "auto") and environment.json."""
        with atomic_open(self.path / "config.yaml") as file:
            file.write(config_yaml)
        write_json(self.path / "ds_config.json", ds_config)
        write_json(self.path / "environment.json", environment())

    def discard_if_new(self) -> None:
        """Remove the folder if this process made it and no run has begun in it."""
        if self._is_new and not self.has_run():
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()
