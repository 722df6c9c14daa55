"""Who is slow: a rank whose own share of a step takes much longer than that of the others.

All ranks of a run finish a step together, so one slow rank (a hot GPU, a shared core, a bad disk)
makes every rank slow, and no rank's step time shows which. Measured is therefore what a rank does
by itself: reading its micro-batches and the forward pass, up to the first wait for another rank.
Nothing is done about a slow rank: the run goes on, says which one it is, and draws the ratio.

With tensor parallelism and ZeRO-3 the forward pass itself waits for other ranks. Then only the
reading of data is measured, and a rank that computes slowly is not found.

The times are in the log and in TensorBoard, never in scalars.jsonl: equal runs have equal records.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from statistics import median_low
from typing import Any

import torch

from sparsecl import dist
from sparsecl.engine.observe.journal import Journal

# Below these a difference is noise of the machine, or costs too little to be worth a line.
MIN_RATIO = 1.5  # slowest rank / median rank
MIN_SECONDS = 0.020  # slowest rank - median rank, per step


class Stragglers:
    """Measures this rank, and compares ranks at every logged step."""

    def __init__(self, journal: Journal, *, forward_waits: bool) -> None:
        """Args:
        forward_waits: the forward pass holds collectives, so its time is not this rank's own.
        """
        self.journal, self.forward_waits = journal, forward_waits
        self.clock = time.perf_counter
        self._seconds, self._steps = 0.0, 0
        # The first step of a process makes buffers and compiles kernels, here longer than there.
        self._warm = False
        self._events: deque[tuple[Any, Any]] = deque()  # begin and end on the device, not yet read
        self._named: set[tuple[int, int]] = set()  # (rank, phase)

    @contextlib.contextmanager
    def data(self) -> Iterator[None]:
        """Around what a micro-batch takes on the host. Local."""
        begin = self.clock()
        yield
        self._seconds += self.clock() - begin

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Around the forward pass of a micro-batch. Local; does not wait for the device."""
        if self.forward_waits:
            yield
        elif not torch.cuda.is_available():
            with self.data():
                yield
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
            self._read(wait=False)

    def step_done(self) -> None:
        """One step is over. Local."""
        if self._warm:
            self._steps += 1
            return
        self._read(wait=True)
        self._seconds, self._warm = 0.0, True

    def compare(self, more: Sequence[float] = ()) -> list[list[float]]:
        """Compare the ranks over the steps since the last call. Collective over the world.

        Args:
            more: other numbers of this rank, which travel along; NaN stays NaN.

        Returns:
            Those of each rank; an empty list if no step counts yet, on all ranks alike.
        """
        self._read(wait=True)
        if not self._steps:
            return []
        size, mine = dist.world_size(), [self._seconds / self._steps, *more]
        self._seconds, self._steps = 0.0, 0
        if size == 1:
            return [mine[1:]]
        # Number by number, of all ranks: everybody fills in its own column.
        table = torch.zeros(len(mine) * size, dtype=torch.float64)
        table[dist.rank() :: size] = torch.tensor(mine, dtype=torch.float64)
        found = dist.all_reduce(table.to(dist.device())).view(len(mine), size).tolist()
        self._judge(found[0])
        return [[row[rank] for row in found[1:]] for rank in range(size)]

    def _judge(self, seconds: list[float]) -> None:
        """Args:
        seconds: of every rank, per step.
        """
        # The low median: of two ranks the faster one is the usual.
        slowest, usual = max(seconds), median_low(seconds)
        ratio = slowest / max(usual, 1e-9)
        self.journal.scalars({"health/slowest_rank_ratio": ratio})
        rank, phase = seconds.index(slowest), self.journal.position.phase
        far = ratio > MIN_RATIO and slowest - usual > MIN_SECONDS
        if far and (rank, phase) not in self._named:
            self._named.add((rank, phase))
            self.journal.say(
                f"  warning: step {self.journal.position.step}: rank {rank} is slow: "
                f"{slowest:.3f} s of its own in every step, the usual is {usual:.3f} s. All ranks "
                "wait for it."
            )

    def _read(self, *, wait: bool) -> None:
        """Take in what the device has finished; with `wait`, all of it."""
        while self._events and (wait or self._events[0][1].query()):
            begin, end = self._events.popleft()
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000.0
