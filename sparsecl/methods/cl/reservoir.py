"""Which earlier sequences are remembered: a list of names, the same on all ranks.

A sequence is (phase, number in the phase); its tokens are read from the data again. Reservoir
sampling (Vitter 1985): after t sequences each is in the memory with probability capacity / t.

t = sequences seen so far, S = new sequences per optimizer step.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl import dist
from sparsecl.methods.base import Method
from sparsecl.methods.cl.config import ReplayConfig
from sparsecl.methods.context import Batch, MethodContext, SliceTensors


class Reservoir:
    """A uniform sample without replacement of all names seen, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_seen = 0
        self.names = np.empty((0, 2), dtype=np.int64)
        """(phase, number of the sequence in the phase) of each filled slot."""

    def slots(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The slots that the next `num` names are to fill, int64 [num]; -1 = not remembered.

        The t-th name (1-based) fills slot t - 1 while there is room; then it takes the slot j drawn
        from 0..t-1, if there is such a slot. Of two that draw one slot the later one has it.
        """
        found = np.full(num, -1, dtype=np.int64)
        if not num:
            return found
        t = self.num_seen + 1 + np.arange(num)
        drawn = np.where(t <= self.capacity, t - 1, rng.integers(0, t))
        slots, from_the_end = np.unique(drawn[::-1], return_index=True)
        kept = slots < self.capacity
        found[num - 1 - from_the_end[kept]] = slots[kept]
        return found

    def fill(self, names: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Show `names` [n, 2], whose `slots` were drawn before."""
        self.num_seen += len(names)
        filled = np.empty((min(self.num_seen, self.capacity), 2), dtype=np.int64)
        filled[: len(self.names)] = self.names
        filled[slots[slots >= 0]] = names[slots >= 0]
        self.names = filled

    def insert(self, names: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Show `names` [n, 2] in this order."""
        self.fill(names, self.slots(len(names), rng))

    def draw_slots(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`num` filled slots with replacement, each equally likely."""
        return rng.integers(0, len(self.names), size=num)

    def draw(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`num` names [num, 2] with replacement, each filled slot equally likely."""
        return self.names[self.draw_slots(num, rng)]


def new_rows(context: MethodContext, batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a micro-batch that are new in this step, whatever other methods have added, and their
    places in the step. Local."""
    progress, num = context.progress, context.batch_sequences
    phase, number = batch.origin.T
    places = number - progress.data_step * num
    rows = np.flatnonzero((phase == progress.phase) & (places >= 0) & (places < num))
    return rows, places[rows]


class Rehearsal(Method):
    """Base of methods that train remembered sequences again: memory, draws and state."""

    config: ReplayConfig

    def __init__(self, config: ReplayConfig) -> None:
        super().__init__(config)
        self.reservoir = Reservoir(config.sequences)
        self.num_replayed = 0
        self.by_phase: list[int] = []
        """How many of them were first read in each phase."""
        self._drawn: list[NDArray[np.int64]] = []  # of the step at hand; counted if it is applied

    @property
    def replayed_sequences(self) -> int:
        return self.num_replayed

    @property
    def replayed_by_phase(self) -> Sequence[int]:
        return self.by_phase

    def step_start(self, context: MethodContext) -> None:
        self._drawn = []

    def draw(self, context: MethodContext, num: int, purpose: str) -> NDArray[np.int64]:
        """This rank's `num` slots of what the micro-batch at hand replays.

        All ranks draw the whole step's slots and take their own part, in the order of new
        sequences: so two layouts replay the same sequences.
        """
        progress, per_micro_step = context.progress, num * dist.dp_size()
        rng = context.generator(self.name, purpose, progress.step)
        drawn = self.reservoir.draw_slots(per_micro_step * progress.num_micro_steps, rng)
        first = progress.micro_step * per_micro_step
        self._drawn.append(self.reservoir.names[drawn[first : first + per_micro_step]])
        start = first + dist.dp_rank() * num
        return drawn[start : start + num]

    def count_drawn(self) -> None:
        """The step is applied: all ranks together have replayed what was drawn for it."""
        for names in self._drawn:
            self.num_replayed += len(names)
            counts = np.bincount(names[:, 0], minlength=len(self.by_phase))
            counts[: len(self.by_phase)] += np.array(self.by_phase, dtype=np.int64)
            self.by_phase = counts.tolist()

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return {}, {
            "num_seen": self.reservoir.num_seen,
            "names": self.reservoir.names.tolist(),
            "num_replayed": self.num_replayed,
            "by_phase": self.by_phase,
        }

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        values = {"by_phase": [], **values}  # earlier versions did not count it
        super().check_state(tensors, values)
        by_phase = values["by_phase"]
        if not all(type(count) is int and 0 <= count < 2**62 for count in by_phase):
            raise ValueError(f"by_phase: {by_phase!r:.40} are no counts")
        if sum(by_phase) > values["num_replayed"]:
            raise ValueError(f"by_phase: {sum(by_phase)} of {values['num_replayed']} replayed")
        names, num_seen = values["names"], values["num_seen"]
        for key in ("num_seen", "num_replayed"):
            if not 0 <= values[key] < 2**62:
                raise ValueError(f"{key}: {values[key]} is no count")
        if len(names) != min(num_seen, self.config.sequences):
            raise ValueError(
                f"names: {len(names)} of {num_seen} seen, room {self.config.sequences}"
            )
        for name in names:
            whole = isinstance(name, list) and [type(part) for part in name] == [int, int]
            if not whole or not all(0 <= part < 2**62 for part in name):
                raise ValueError(f"names: {name!r:.40} is no [phase, number]")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.reservoir.num_seen = values["num_seen"]
        self.reservoir.names = np.array(values["names"], dtype=np.int64).reshape(-1, 2)
        self.num_replayed = values["num_replayed"]
        self.by_phase = list(values.get("by_phase", ()))


def step_names(context: MethodContext, data_step: int) -> NDArray[np.int64]:
    """Names [S, 2] of the new sequences of the step after `data_step` steps' worth of data."""
    numbers = np.arange(context.batch_sequences, dtype=np.int64)
    numbers += data_step * context.batch_sequences
    return np.stack([np.full_like(numbers, context.progress.phase), numbers], axis=1)


def read(context: MethodContext, names: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens [n, context + 1] of `names` [n, 2], in their order."""
    phases, numbers = names.T
    order = np.argsort(phases, kind="stable")
    parts = [context.rows(int(p), numbers[phases == p]) for p in np.unique(phases)]
    return np.concatenate(parts)[np.argsort(order)]
