"""Learners without the loop of a network: Cobweb, its neural relatives, the nearest class mean.

Each image of a task's own classes is seen once (by CobwebNN in passes of its own); those of earlier
tasks do not come again. The answer may be any class. A task is whole or not at all: a signal in the
middle of one leaves at once, and the run goes on from the task before.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl import signals
from sparsecl.errors import Preempted
from sparsecl.streams import checkpoint
from sparsecl.streams.cobweb.network import CobwebNetwork
from sparsecl.streams.cobweb.network_file import state_of, take_state
from sparsecl.streams.cobweb.run import LEARNERS, ClassIncrementalConfig, Cobweb
from sparsecl.streams.cobweb.tree_file import tree_of, tree_tensors
from sparsecl.streams.config import StreamRunConfig
from sparsecl.streams.image_sets import ImageSplit
from sparsecl.streams.images import Images
from sparsecl.streams.increments.data import Rows
from sparsecl.streams.increments.pack import Advance, IncrementPack, Save

SHOWN = 100
"""Images between two looks at the progress, where a learner takes them one by one."""


class ConceptPack(IncrementPack):
    """A learner of one seed; its steps are images."""

    def __init__(
        self, config: StreamRunConfig, split: ImageSplit, pack: int, *, checks: int = 0
    ) -> None:
        super().__init__(config, split, pack, checks=checks)
        self.split = split
        kind: Any = config.learner.kind
        settings = ClassIncrementalConfig(
            data=Path(split.train.name), learner=kind, budget=config.learner.budget, seed=self.seed
        )
        self.learner: Any = LEARNERS[kind](settings, split)

    def steps_of(self, task: int) -> int:
        return 1

    @property
    def num_steps(self) -> int:
        return sum(len(part.train) for part in self.data.parts)

    @property
    def num_done(self) -> int:
        return sum(len(part.train) for part in self.data.parts[: self.position.task])

    def state(self) -> tuple[checkpoint.Tensors, Mapping[str, Any]]:
        learner = self.learner
        if isinstance(learner, CobwebNetwork):
            found = state_of(learner)
        elif isinstance(learner, Cobweb):
            found = {k: torch.from_numpy(v) for k, v in tree_tensors(learner.tree).items()}
        else:
            found = {key: torch.from_numpy(getattr(learner, key)) for key in ("sums", "counts")}
        return {key: value.contiguous() for key, value in found.items()}, {}

    def put_back(self, saved: checkpoint.Saved) -> None:
        learner, found = self.learner, dict(saved.tensors)
        if isinstance(learner, CobwebNetwork):
            take_state(learner, found, saved.path)
            return
        arrays = {key: value.numpy() for key, value in found.items()}
        if isinstance(learner, Cobweb):
            term = learner.tree.concepts.label_term
            self.learner = Cobweb(tree_of(arrays, term, saved.path), learner.budget)
            return
        for key in ("sums", "counts"):
            known = getattr(learner, key)
            if key not in arrays or arrays[key].shape != known.shape:
                raise saved.wrong(f"{key}: is missing or of another shape")
            setattr(learner, key, arrays[key].astype(known.dtype))

    def look_ahead(self, task: int) -> Mapping[str, float]:
        return {}

    def begin(self) -> None:
        return None

    def learn(self, save: Save, advance: Advance) -> None:
        task = self.position.task
        rows = self.data.parts[task].train
        size = SHOWN if isinstance(self.learner, Cobweb) else len(rows)
        signals.answer_by(self._leave)
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            self.learner.learn(*_images(self.split.train, part))
            advance(len(part), {"task": f"{task + 1}/{self.config.stream.tasks}"})
        signals.answer_by(None)

    def _leave(self, name: str) -> NoReturn:
        raise Preempted(f"{name}: the run goes on from the begin of task {self.position.task}")

    def finish(self) -> Mapping[str, float]:
        return {}

    def right(self, rows: Rows, seen: int) -> float:
        images, labels = _images(self.split.test, rows)
        return float((self.learner.predict(images).argmax(1) == labels).mean())


def _images(images: Images, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pixels in [0, 1] and labels."""
    return images.pixels[rows].astype(np.float32) / np.float32(images.white), images.labels[rows]
