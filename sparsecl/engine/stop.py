"""A request to stop: a signal to any rank, agreed by all, answered after the step.

Batch systems send a signal before they take a machine away (Slurm: SIGUSR1 before the time limit,
SIGTERM at a preemption). The handler only takes a note; all ranks compare notes between two steps,
so all save the same step, whichever rank the signal reached.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch

from sparsecl import dist
from sparsecl.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Takes note of signals while it is entered.

    Before `armed` is set there is nothing to save: a signal then ends the process at once.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the first signal; 0 = none."""

        self.armed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self.armed:
            raise Preempted(f"{name} before the first step: nothing to save yet")
        if self.received:
            return  # a second signal must not tear the save that the first one asked for
        self.received = number
        # print is not safe here: the signal may have interrupted one.
        text = f"sparsecl: rank {dist.rank()}: {name}: saving after this step, then stopping\n"
        os.write(2, text.encode())

    def agreed(self) -> str | None:
        """Name of the signal that any rank has had. Collective over the world."""
        found = dist.all_reduce(torch.tensor([self.received]), op="max")
        return signal.Signals(int(found)).name if int(found) else None
