"""Base of methods that go through earlier sequences again: how many, and of which phases.

S = new sequences per optimizer step.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl import dist
from sparsecl.errors import UserError
from sparsecl.methods.base import Method
from sparsecl.methods.context import Batch, MethodContext, SliceTensors


class Again(Method):
    """Counts what an applied step has gone through again, over all ranks."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
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

    def draw(
        self, context: MethodContext, names: NDArray[np.int64], num: int, purpose: str
    ) -> NDArray[np.int64]:
        """This rank's `num` places in `names` [n, 2] of what the micro-batch at hand replays, each
        place equally likely, with replacement.

        All ranks draw the whole step's places and take their own part, in the order of new
        sequences: so two layouts replay the same sequences.
        """
        progress, per_micro_step = context.progress, num * dist.dp_size()
        rng = context.generator(self.name, purpose, progress.step)
        drawn = rng.integers(0, len(names), size=per_micro_step * progress.num_micro_steps)
        first = progress.micro_step * per_micro_step
        self._drawn.append(names[drawn[first : first + per_micro_step]])
        start = first + dist.dp_rank() * num
        return drawn[start : start + num]

    def count_drawn(self) -> None:
        """The step is applied: all ranks together have gone through what was drawn for it."""
        for names in self._drawn:
            self.num_replayed += len(names)
            phases = names[:, 0]
            counts = np.bincount(phases[phases >= 0], minlength=len(self.by_phase))
            counts[: len(self.by_phase)] += np.array(self.by_phase, dtype=np.int64)
            self.by_phase = counts.tolist()

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return {}, {"num_replayed": self.num_replayed, "by_phase": self.by_phase}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        values = {"by_phase": [], **values}  # earlier versions did not count it
        super().check_state(tensors, values)
        by_phase, num = values["by_phase"], values["num_replayed"]
        if not all(type(count) is int and 0 <= count < 2**62 for count in by_phase):
            raise ValueError(f"by_phase: {by_phase!r:.40} are no counts")
        if not 0 <= num < 2**62:
            raise ValueError(f"num_replayed: {num} is no count")
        if sum(by_phase) > num:
            raise ValueError(f"by_phase: {sum(by_phase)} of {num} replayed")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.num_replayed = values["num_replayed"]
        self.by_phase = list(values.get("by_phase", ()))


def check_names(names: Sequence[Any]) -> None:
    """Raise ValueError unless each of a checkpoint's `names` is a sequence of some phase's data."""
    for name in names:
        whole = isinstance(name, list) and [type(part) for part in name] == [int, int]
        if not whole or not all(0 <= part < 2**62 for part in name):
            raise ValueError(f"names: {name!r:.40} is no [phase, number]")


def no_way_on(name: str, missing: str) -> UserError:
    """What `began_anew` raises where a method cannot go on without its state."""
    return UserError(
        f"methods.{name}: {missing} is not known, so this run cannot go on. Resume it without "
        "--weights_only, or begin another."
    )


def new_rows(context: MethodContext, batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of a micro-batch that are new in this step, whatever other methods have added, and their
    places in the step. Local."""
    progress, num = context.progress, context.batch_sequences
    phase, number = batch.origin.T
    places = number - progress.data_step * num
    rows = np.flatnonzero((phase == progress.phase) & (places >= 0) & (places < num))
    return rows, places[rows]


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
