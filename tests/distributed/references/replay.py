"""Replay: the draws are those of the method's own reservoir, the losses plain PyTorch's."""

import numpy as np
import torch

from sparsecl import seeding
from sparsecl.methods.cl.reservoir import Reservoir
from tests.distributed.references.run import ReferenceRun


class ReplayReference(ReferenceRun):
    def phase_start(self) -> None:
        if self.phase == 0:
            self.reservoir = Reservoir(self.config.methods.replay.sequences)

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.reservoir.names):
            num = round(self.config.methods.replay.share * len(rows))
            rng = seeding.stream(self.config.seed, "replay", "draw", self.step)
            drawn = self.reservoir.draw(num, rng)
            rows = torch.cat([rows, *(self.rows(p, np.array([n])) for p, n in drawn)])
        return super().loss(rows)

    def after_step(self) -> None:
        size = self.config.batch.sequences
        numbers = np.arange(size) + size * self.phase_step
        names = np.stack([np.full_like(numbers, self.phase), numbers], axis=1)
        rng = seeding.stream(self.config.seed, "replay", "insert", self.step)
        self.reservoir.insert(names, rng)
