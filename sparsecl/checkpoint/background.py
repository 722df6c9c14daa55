"""Saving beside training: a copy of the tensors, then a thread that writes and publishes it.

Training waits for the copy only. The thread talks to those of the other ranks through a group of
its own. At most one save is on its way: the next one, and the end of the run, wait for it first
and hear then what went wrong. A kill at any moment leaves what it would leave in the foreground,
because the same function publishes.
"""

import copy
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsecl import dist
from sparsecl.checkpoint.manifest import ParameterEntry, Piece
from sparsecl.checkpoint.publish import publish
from sparsecl.topology.layer import LayerTopology


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A save that is done, as this rank saw it."""

    step: int
    folder: Path

    stall_seconds: float
    """How long the caller was held up: by the copy, and by waiting for the end of the writing."""

    write_seconds: float
    """From the first byte to the end of publication, waiting for slower ranks included."""

    bytes: int
    """Size of the checkpoint, all ranks' files."""


class Saver:
    """Saves the checkpoints of one run, in the foreground or beside training."""

    last: Saved | None = None
    """The last save that was waited for; None before the first."""

    def __init__(self, root: Path, *, keep: int, background: bool) -> None:
        """Collective over the world if `background`.

        Args:
            root: the `checkpoints` folder of the run.
            keep: how many checkpoints stay.
        """
        self.root, self.keep, self.background = root, keep, background
        self._group = dist.side_group() if background else None
        self._running: _Writing | None = None

    def save(
        self,
        step: int,
        tensors: dict[str, torch.Tensor],
        pieces: Sequence[Piece],
        parameters: dict[str, ParameterEntry],
        state: dict[str, Any],
        topologies: Mapping[str, LayerTopology] | None = None,
        arrays: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Save a checkpoint; the arguments are those of `publish`. Collective over the world.

        In the background, everything that the caller may change is copied before this returns.

        Raises:
            StorageError, CannotCreateError: on all ranks, of the save before this one, or in the
                foreground of this one.
        """
        self.wait()
        began = time.monotonic()

        def copied() -> tuple[Any, ...]:
            # A graph is immutable, so a list of them is copy enough.
            return (
                step,
                _to_cpu(tensors),
                list(pieces),
                dict(parameters),
                copy.deepcopy(state),
                dict(topologies or {}),
                _to_cpu((arrays or {}) if dist.rank() == 0 else {}),
            )

        if self.background:
            # Agreed on: with memory short on one rank, the writers of the others would wait.
            self._running = _Writing(self, *dist.agree(copied))
            self._running.start()
        else:
            self._running = _Writing(
                self, step, tensors, pieces, parameters, state, topologies, arrays
            )
            self._running.run()
        self._running.stall_seconds = time.monotonic() - began
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Wait until the save on its way, if any, is published. All ranks must call it.

        Raises:
            What went wrong in it, the same on all ranks; once.
        """
        writing, self._running = self._running, None
        if writing is None:
            return
        began = time.monotonic()
        if writing.is_alive():
            writing.join()
        if writing.error is not None:
            raise writing.error
        assert writing.folder is not None
        self.last = Saved(
            step=writing.step,
            folder=writing.folder,
            stall_seconds=writing.stall_seconds + time.monotonic() - began,
            write_seconds=writing.write_seconds,
            bytes=writing.bytes,
        )


class _Writing(threading.Thread):
    """One publication. It ends with the process: a run that fails does not wait for its disk."""

    def __init__(self, saver: Saver, step: int, *arguments: Any) -> None:
        super().__init__(name=f"save of step {step}", daemon=True)
        self.saver, self.step = saver, step
        self.arguments: tuple[Any, ...] = arguments
        self.folder: Path | None = None
        self.error: Exception | None = None
        self.stall_seconds = self.write_seconds = 0.0
        self.bytes = 0

    def run(self) -> None:
        """Publish. Every error is kept for `Saver.wait`, which all ranks call."""
        began = time.monotonic()
        *arguments, topologies, arrays = self.arguments
        saver = self.saver
        try:
            self.folder = publish(
                saver.root,
                self.step,
                *arguments,
                keep=saver.keep,
                topologies=topologies,
                arrays=arrays,
                group=saver._group,
            )
            self.bytes = sum(path.stat().st_size for path in self.folder.iterdir())
        except Exception as error:
            self.error = error
        finally:
            self.arguments = ()  # the copy is the size of the model: free it now
        self.write_seconds = time.monotonic() - began


def _to_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies that nobody else holds, complete when this returns."""
    copies = {}
    for key, tensor in tensors.items():
        # From pinned memory the GPU's copy engine works while this loop goes on; torch keeps such
        # blocks, so only the first save pays for making them.
        on_gpu = tensor.is_cuda
        copies[key] = torch.empty(
            tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=on_gpu
        ).copy_(tensor.detach(), non_blocking=on_gpu)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies
