"""A request to stop: a signal to any rank, agreed by all, answered after the step.

Batch systems send a signal before they take a machine away. The handler only takes a note; all
ranks compare notes between two steps, so all save the same step, whichever rank the signal reached.
A launcher that is gone counts as a signal: nobody would start or stop these ranks any more.
"""

import signal

import torch

from sparsecl import dist, place, signals


class StopRequest:
    """What a signal means to a run, by how far it is."""

    def arm(self) -> None:
        """From now on a signal is noted. Raises Preempted if there was one before."""
        signals.answer_by(signals.leave)
        signals.answer_by(_promise)

    def rest(self) -> None:
        """The run is over but for its results: a signal changes nothing any more."""
        signals.answer_by(None)
        if signals.received() is not None:
            signals.write(f"rank {dist.rank()}: that was the last step: the run is finished")

    def agreed(self) -> str | None:
        """Name of the signal that any rank has had. Collective over the world."""
        if signals.received() is None and place.is_orphan():
            signals.write(f"rank {dist.rank()}: the launcher is gone: saving, then stopping")
            signals.note(signal.SIGHUP)
        mine = signals.received()
        number = signal.Signals[mine].value if mine else 0
        found = int(dist.all_reduce(torch.tensor([number]), op="max"))
        return signal.Signals(found).name if found else None


def _promise(name: str) -> None:
    signals.write(f"rank {dist.rank()}: {name}: saving after this step, then stopping")
