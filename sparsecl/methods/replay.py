"""Experience replay: a few earlier sequences are trained beside the new ones in every batch.

Source: Chaudhry et al. 2019 (arXiv 1902.10486), with reservoir sampling (Vitter 1985): after t
sequences each of them is in the memory with probability capacity / t. Loss: the mean over new and
replayed sequences together; the step's new sequences enter the memory after the step. The memory
knows no phases, so a part of what is replayed is from the present one.

Differs: the papers keep the examples themselves, often one memory per process. Here the memory is
ONE list of names, the same on all ranks: a sequence is (phase, number in the phase), and its tokens
are read from the data again when it is replayed. So no text is stored twice, a batch does not
depend on the parallel layout, and a resume needs only the names and how many were seen.

B = capacity, t = sequences seen so far, S = new sequences per optimizer step.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl import dist
from sparsecl.methods.base import Method, MethodContext, SliceTensors
from sparsecl.methods.config import ReplayConfig


class Reservoir:
    """A uniform sample without replacement of all names seen, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_seen = 0
        self.names = np.empty((0, 2), dtype=np.int64)
        """(phase, number of the sequence in the phase) of each filled slot."""

    def insert(self, names: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Show `names` [n, 2] in this order.

        The t-th name (1-based) fills slot t - 1 while there is room; then it takes the slot j drawn
        from 0..t-1, if there is such a slot.
        """
        if not len(names):
            return
        t = self.num_seen + 1 + np.arange(len(names))
        slots = np.where(t <= self.capacity, t - 1, rng.integers(0, t))
        kept = slots < self.capacity
        self.num_seen += len(names)
        filled = np.empty((min(self.num_seen, self.capacity), 2), dtype=np.int64)
        filled[: len(self.names)] = self.names
        # If a slot is drawn twice numpy keeps the later name, as one insertion at a time would.
        filled[slots[kept]] = names[kept]
        self.names = filled

    def draw(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`num` names [num, 2] with replacement, each filled slot equally likely."""
        return self.names[rng.integers(0, len(self.names), size=num)]


class Replay(Method):
    """Appends replayed sequences to every micro-batch. All ranks keep the same reservoir."""

    name = "replay"

    def __init__(self, config: ReplayConfig) -> None:
        self.config = config
        self.reservoir = Reservoir(config.sequences)
        self.num_replayed = 0
        self.by_phase: list[int] = []
        """How many of them were first read in each phase."""

    @property
    def replayed_sequences(self) -> int:
        return self.num_replayed

    @property
    def replayed_by_phase(self) -> Sequence[int]:
        return self.by_phase

    def batch(self, context: MethodContext, rows: np.ndarray) -> np.ndarray:
        """Append this rank's part of the step's draw; nothing while the memory is empty.

        The draw has share * S names whatever the layout, so two layouts replay the same sequences.
        """
        if not len(self.reservoir.names):
            return rows
        num = self.config.num_replayed(len(rows))
        per_micro_step = num * dist.dp_size()
        rng = context.generator("replay", "draw", context.step)
        drawn = self.reservoir.draw(per_micro_step * context.num_micro_steps, rng)
        first = context.micro_step * per_micro_step
        self._count(drawn[first : first + per_micro_step])
        start = first + dist.dp_rank() * num
        return np.concatenate([rows, self._read(context, drawn[start : start + num])])

    def _count(self, names: NDArray[np.int64]) -> None:
        """Note that all ranks together replay these names [n, 2]."""
        self.num_replayed += len(names)
        counts = np.bincount(names[:, 0], minlength=len(self.by_phase))
        counts[: len(self.by_phase)] += np.array(self.by_phase, dtype=np.int64)
        self.by_phase = counts.tolist()

    def after_step(self, context: MethodContext) -> None:
        """Show the sequences of the step that has just been taken to the reservoir."""
        num = context.batch_sequences
        numbers = (context.data_step - 1) * num + np.arange(num, dtype=np.int64)
        names = np.stack([np.full_like(numbers, context.phase), numbers], axis=1)
        self.reservoir.insert(names, context.generator("replay", "insert", context.step))

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

    def _read(self, context: MethodContext, names: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens [n, context + 1] of `names` [n, 2], in their order."""
        phases, numbers = names.T
        order = np.argsort(phases, kind="stable")
        parts = [context.rows(int(p), numbers[phases == p]) for p in np.unique(phases)]
        return np.concatenate(parts)[np.argsort(order)]
