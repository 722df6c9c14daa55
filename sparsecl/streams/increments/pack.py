"""One learner through all increments: what comes, what is measured, what is kept."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsecl import signals
from sparsecl.errors import Preempted
from sparsecl.streams import checkpoint
from sparsecl.streams.config import StreamRunConfig
from sparsecl.streams.image_sets import ImageSplit
from sparsecl.streams.increments.data import Increments, Rows
from sparsecl.streams.position import Position

Record = Callable[..., None]
Save = Callable[["IncrementPack"], None]
Advance = Callable[..., None]


class IncrementPack(ABC):
    """A learner of one seed. A subclass says how it learns and answers."""

    def __init__(
        self, config: StreamRunConfig, split: ImageSplit, pack: int, *, checks: int = 0
    ) -> None:
        """
        Args:
            pack: which of config.packs.
            checks: audits of the packs before.
        """
        self.config, self.seeds = config, config.packs[pack]
        (self.seed,) = self.seeds
        self.data = Increments(
            split, config.stream.increments, tasks=config.stream.tasks, seed=self.seed
        )
        self.position = Position.of(pack, 1, checks)

    # Of a subclass.

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Parts of the whole work."""

    @property
    @abstractmethod
    def num_done(self) -> int:
        """Those that lie behind."""

    @property
    def nonzero(self) -> int:
        """Absent weights that were found to be there."""
        return 0

    @abstractmethod
    def state(self) -> tuple[checkpoint.Tensors, Mapping[str, Any]]:
        """What a checkpoint keeps beside the position."""

    @abstractmethod
    def put_back(self, saved: checkpoint.Saved) -> None:
        """Take over `state`; the position is there. Raises DataError."""

    @abstractmethod
    def steps_of(self, task: int) -> int:
        """Parts that a task may be stopped between."""

    @abstractmethod
    def look_ahead(self, task: int) -> Mapping[str, float]:
        """Figures on the images of a task before it begins."""

    @abstractmethod
    def begin(self) -> None:
        """A task begins."""

    @abstractmethod
    def learn(self, save: Save, advance: Advance) -> None:
        """What is left of the task."""

    @abstractmethod
    def finish(self) -> Mapping[str, float]:
        """A task ends. Returns figures of it."""

    @abstractmethod
    def right(self, rows: Rows, seen: int) -> float:
        """Share of test images that are answered right where `seen` classes have come."""

    # Of all.

    def go_on(self, saved: checkpoint.Saved) -> None:
        """Be where a checkpoint was written.

        Raises:
            DataError: the checkpoint cannot be true.
        """
        try:
            found = Position.from_json(saved.value["position"], 1)
        except (ValueError, TypeError) as error:
            raise saved.wrong(error) from None
        tasks = self.config.stream.tasks
        if found.task > tasks or found.step >= (
            self.steps_of(found.task) if found.task < tasks else 1
        ):
            raise saved.wrong(f"position: task {found.task}, step {found.step} is not in the run")
        for name in vars(found):
            setattr(self.position, name, getattr(found, name))
        self.put_back(saved)

    def train(self, record: Record, save: Save, advance: Advance) -> None:
        """All tasks that are left; see Pack.train."""
        position, tasks = self.position, self.config.stream.tasks
        while position.task < tasks:
            task = position.task
            if position.step == 0:
                ahead = self.look_ahead(task)
                if ahead:
                    record("before", seed=self.seed, task=task, **ahead)
                self.begin()
            self.learn(save, advance)
            figures = self.finish()
            record("task", seed=self.seed, task=task, **figures, **self._tested(task))
            position.task, position.step = task + 1, 0
            stopped = signals.received()
            if stopped or position.task % self.config.checkpoint.every == 0:
                save(self)
            if stopped:
                raise Preempted(f"{stopped}: saved after task {task}")

    def _tested(self, task: int) -> dict[str, Any]:
        """Accuracy on the test images of each task so far, of all, and of the newest classes."""
        seen = self.data.num_seen(task)
        groups = [part.test for part in self.data.parts[: task + 1]]
        row = [self.right(group, seen) for group in groups]
        share = np.average(row, weights=[len(group) for group in groups])
        return {"accuracy_seen": float(share), "accuracy_new": row[-1], "row": row}
