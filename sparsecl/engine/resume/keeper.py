"""Checkpoints of a run: what goes into them, and what happens if one cannot be written."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsecl import dist, watchdog
from sparsecl.checkpoint.background import Saver
from sparsecl.engine.build import Built
from sparsecl.engine.observe.journal import Journal
from sparsecl.engine.observe.observer import Observer, all_arrays
from sparsecl.engine.position import Position
from sparsecl.engine.resume import state
from sparsecl.engine.run_config import CheckpointConfig
from sparsecl.errors import CannotCreateError, StorageError
from sparsecl.methods.several import Methods
from sparsecl.seal import Extent

# What a large model's checkpoint on a slow file system may take.
SAVE_SECONDS = 3600.0

INITIAL = "initial"
"""Folder of the checkpoint before the first step, beside `checkpoints`."""

KEPT = "kept"
"""Folder of the checkpoints of checkpoint.keep_steps, beside `checkpoints`."""


def saved_records(state: Mapping[str, Any]) -> Extent:
    """What scalars.jsonl held when the checkpoint with this `state` was saved."""
    return Extent(int(state["scalars_bytes"]), state["scalars_sha256"])


class Keeper:
    """Saves one run. All methods are collective over the world."""

    def __init__(
        self,
        config: CheckpointConfig,
        root: Path,
        built: Built,
        position: Position,
        journal: Journal,
        observers: Mapping[str, Observer[Any]],
        *,
        identity: Mapping[str, Any],
    ) -> None:
        """Args:
        root: the `checkpoints` folder of the run.
        observers: whose state is kept, by name.
        identity: what a resume compares, JSON-safe.
        """
        self.config, self.built = config, built
        self.position, self.journal, self.identity = position, journal, identity
        self.observers = observers
        self.root = root
        self.saver = Saver(root, keep=config.keep, background=config.background)
        self.saved_step = -1
        """The step of the last checkpoint of this process that has not failed up to now."""

    def is_due(self) -> bool:
        """Is this step one to save at, inside a phase?"""
        every = self.config.every
        if every and self.position.phase_step % every == 0:
            return True
        return self.position.step in self.config.keep_steps

    def save(self, methods: Methods) -> None:
        """Save the run as it is now; where checkpoint.keep_steps names this step, once more beside
        the others, where it stays. A run that goes on from before it writes the same weights anew.

        Raises:
            StorageError, CannotCreateError: if checkpoint.on_failure says to stop.
        """
        begin = time.monotonic()
        if not self._save(self.saver, methods):
            return
        self.saved_step = self.position.step
        if self.saver.last is not None:
            self.journal.saved(self.saver.last, stall_seconds=time.monotonic() - begin)
        if self.position.step in self.config.keep_steps:
            keep, place = len(self.config.keep_steps), self.root.with_name(KEPT)
            self._save(Saver(place, keep=keep, background=False), methods)

    def save_initial(self, methods: Methods) -> None:
        """Save the run before its first step, if checkpoint.initial says so; raises as `save`.

        It lies beside the others too: nothing resumes from it, and retention does not see it.
        """
        if self.config.initial:
            self._save(Saver(self.root.with_name(INITIAL), keep=1, background=False), methods)

    def _save(self, saver: Saver, methods: Methods) -> bool:
        """Save into the folder of `saver`. Returns False if that failed and the run goes on."""
        position = self.position
        with watchdog.patient(f"checkpoint of step {position.step}", SAVE_SECONDS):
            try:
                # A checkpoint must not claim a record that is not on the disk.
                records = dist.agree(self.journal.sync)
                here = {
                    **self.identity,
                    "position": asdict(position),
                    "observers": {key: one.state_dict() for key, one in self.observers.items()},
                    "scalars_bytes": records.num_bytes,
                    "scalars_sha256": records.sha256,
                    "audit_checks": self.built.guard.checks,
                    "matrix": self.journal.matrix,
                }
                arrays = all_arrays(self.observers)
                state.save(saver, self.built, methods, here, arrays, step=position.step)
            except (StorageError, CannotCreateError) as error:
                self._failed(error)
                return False
        return True

    def wait(self) -> None:
        """Wait for a save in the background, if there is one; `save` tells what it raises."""
        with watchdog.patient("the end of a checkpoint in the background", SAVE_SECONDS):
            try:
                self.saver.wait()
            except (StorageError, CannotCreateError) as error:
                self._failed(error)

    def _failed(self, error: StorageError | CannotCreateError) -> None:
        self.saved_step = -1
        if self.config.on_failure == "stop":
            raise error
        self.journal.say(f"  warning: {error}. Training goes on without this checkpoint.")
