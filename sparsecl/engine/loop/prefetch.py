"""Micro-batches, read before they are due.

A thread reads the next micro-batches of the run's order while the device works on this one. Which
sequences a micro-batch holds follows from its place alone (data/batches.py), so reading early
changes nothing: a place that nobody foresaw (after a resume, a rollback, at the border of a phase)
is read when it is asked for, and what was read in vain is dropped. Methods change rows afterwards,
in the thread of the loop.

On a GPU the thread also copies to page-locked memory and from there to the device, on a stream of
its own: the copy runs beside the computation, and the computation waits for its event, not for the
host. Where a method has changed the rows the copy is of no use, and the changed rows are copied.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from sparsecl import dist
from sparsecl.data.batches import sample_indices
from sparsecl.engine.loop.phase_data import Stream
from sparsecl.engine.schedule import Schedule


class BatchPlace(NamedTuple):
    """Where a micro-batch of this rank stands in the order of the run."""

    phase: int
    step: int
    """Steps' worth of the phase's data before it."""

    micro_step: int

    def next(self, accumulation: int) -> "BatchPlace":
        """The place after this one in the same phase."""
        if self.micro_step + 1 < accumulation:
            return self._replace(micro_step=self.micro_step + 1)
        return self._replace(step=self.step + 1, micro_step=0)


@dataclass
class ReadRows:
    """The rows of one place, and their copy on the device if there is one already."""

    rows: np.ndarray
    """int64 [sequences, context + 1]."""

    copy: torch.Tensor | None = None
    ready: Any = None
    """CUDA event at the end of the copy."""


def row_reader(
    schedule: Schedule, sequences: int, stream_of: Callable[[int], Stream]
) -> Callable[[BatchPlace], np.ndarray]:
    """What reads the rows of one place for this rank, int64 [micro, context + 1].

    Args:
        sequences: of a step, over all ranks.
        stream_of: the sequences of a phase.
    """

    def read(place: BatchPlace) -> np.ndarray:
        return stream_of(place.phase).rows(place_indices(schedule, sequences, place))

    return read


def place_indices(schedule: Schedule, sequences: int, place: BatchPlace) -> np.ndarray:
    """Numbers in their phase of this rank's sequences of a micro-batch, int64 [micro]. Local."""
    return sample_indices(
        place.step,
        sequences=sequences,
        micro=schedule.micro,
        dp_rank=dist.dp_rank(),
        dp_size=schedule.dp_size,
        micro_step=place.micro_step,
    )


class Prefetcher:
    """Reads ahead. All methods are local.

    Law: `take(place).rows` equals `read(place)`, whatever was taken before.
    """

    def __init__(
        self,
        read: Callable[[BatchPlace], np.ndarray],
        *,
        accumulation: int,
        ahead: int,
    ) -> None:
        """Args:
        read: rows of a place; called from another thread if `ahead` > 0.
        accumulation: micro-batches of a step.
        ahead: how many places to read in advance; 0 = none.
        """
        self._read, self._accumulation, self._ahead = read, accumulation, ahead
        self._device = dist.device()
        cuda = self._device.type == "cuda"
        self._side = torch.cuda.Stream(self._device) if cuda and ahead else None
        # One thread, which ends with this object; a disk is not read faster by several.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch") if ahead else None
        self._pending: deque[tuple[BatchPlace, Future[ReadRows]]] = deque()
        self.wait_seconds = 0.0
        """What the loop has waited for rows so far, in this process."""

        self.num_unforeseen = 0
        """Places that had not been asked for in advance."""

    def take(self, place: BatchPlace) -> ReadRows:
        """The micro-batch of one place; reading of those after it begins.

        Raises:
            DataError: whatever `read` raises for this place, and for no other one.
        """
        begin = time.perf_counter()
        found = self._foreseen(place)
        if found is None and self._pool is not None:
            self.num_unforeseen += 1
        batch = ReadRows(self._read(place)) if found is None else found.result()
        self._look_ahead(place)
        self.wait_seconds += time.perf_counter() - begin
        return batch

    def tokens(self, batch: ReadRows, rows: np.ndarray) -> torch.Tensor:
        """`rows` on the device, int64 [sequences, context + 1].

        Args:
            batch: as taken.
            rows: its rows, or what methods have made of them.
        """
        if rows is not batch.rows or batch.copy is None:
            return torch.from_numpy(rows).to(self._device)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(batch.ready)
        # The memory belongs to the side stream: not to be used again before this one is done.
        batch.copy.record_stream(stream)
        return batch.copy

    def close(self) -> None:
        """Drop what was read in vain, and end the thread. `take` must not be called again."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _foreseen(self, place: BatchPlace) -> "Future[ReadRows] | None":
        while self._pending and self._pending[0][0] != place:
            self._pending.popleft()[1].cancel()
        return self._pending.popleft()[1] if self._pending else None

    def _look_ahead(self, place: BatchPlace) -> None:
        if self._pool is None:
            return
        last = self._pending[-1][0] if self._pending else place
        while len(self._pending) < self._ahead:
            last = last.next(self._accumulation)
            self._pending.append((last, self._pool.submit(self._load, last)))

    def _load(self, place: BatchPlace) -> ReadRows:
        rows = self._read(place)
        if self._side is None:
            return ReadRows(rows)
        pinned = torch.from_numpy(rows).pin_memory()
        with torch.cuda.stream(self._side):
            # The allocator keeps `pinned` until the copy is done.
            copy = pinned.to(self._device, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record(self._side)
        return ReadRows(rows, copy, ready)

    def _drop(self) -> None:
        while self._pending:
            self._pending.popleft()[1].cancel()
