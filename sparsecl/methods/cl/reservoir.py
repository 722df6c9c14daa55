"""Which earlier sequences are remembered: a list of names, the same on all ranks.

A sequence is (phase, number in the phase); its tokens are read from the data again. Reservoir
sampling (Vitter 1985): after t sequences each is in the memory with probability capacity / t.

t = sequences seen so far.
"""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsecl.methods.cl.again import Again, check_names
from sparsecl.methods.context import SliceTensors


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

    def draw(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """`num` names [num, 2] with replacement, each filled slot equally likely."""
        return self.names[rng.integers(0, len(self.names), size=num)]


class Remembering(Protocol):
    """Options of what has a reservoir."""

    @property
    def sequences(self) -> int:
        """Its capacity."""
        ...


class Rehearsal(Again):
    """Base of methods that train remembered sequences again: memory and state."""

    config: Remembering

    def __init__(self, config: Remembering) -> None:
        super().__init__(config)
        self.reservoir = Reservoir(config.sequences)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return {}, {
            "num_seen": self.reservoir.num_seen,
            "names": self.reservoir.names.tolist(),
            **super().state_dict()[1],
        }

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        names, num_seen = values["names"], values["num_seen"]
        if not 0 <= num_seen < 2**62:
            raise ValueError(f"num_seen: {num_seen} is no count")
        if len(names) != min(num_seen, self.config.sequences):
            raise ValueError(
                f"names: {len(names)} of {num_seen} seen, room {self.config.sequences}"
            )
        check_names(names)

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.reservoir.num_seen = values["num_seen"]
        self.reservoir.names = np.array(values["names"], dtype=np.int64).reshape(-1, 2)
