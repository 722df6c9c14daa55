"""The run folder: made, locked, and described. The only interface to everything offline."""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from sparsecl.files import atomic_open, lock_folder, write_json

VERSIONED = ("torch", "deepspeed", "megatron-core", "numpy", "datasets", "sentencepiece")


class RunFolder:
    """A run folder held by this process until it ends."""

    def __init__(self, path: Path) -> None:
        """Make the folder if needed and lock it.

        Raises:
            CannotCreateError: no permission, no space, or another run holds it.
        """
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._is_new = not path.exists()
        self._lock: IO[str] = lock_folder(path, "--run_dir")

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


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, object]:
    """Versions, host, cores and the state of the code, as JSON-safe values."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the code that runs, "-dirty" if it was changed; None outside a checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
