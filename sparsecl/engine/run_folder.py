"""The run folder: made, locked, and described. The only interface to everything offline."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecl.engine.environment import environment
from sparsecl.files import atomic_open, check_entries, remove_leftovers, write_json
from sparsecl.locks import FolderLock, lock_folder

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
FOLDERS = ("checkpoints", "diagnostics", "initial", "tb")


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
        self._is_new = not path.exists()
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
