"""Wake, sleep and down-scaling on whole matrices; draws are those of the method's own reservoir."""

import numpy as np
import torch

from sparsecl import seeding
from sparsecl.methods.cl.reservoir import Reservoir
from tests.distributed.references.run import ReferenceRun


class HstReference(ReferenceRun):
    def phase_start(self) -> None:
        self.options = self.config.methods.hst
        if self.phase == 0:
            self.reservoir = Reservoir(self.options.sequences)

    @property
    def asleep(self) -> bool:
        cycle = self.options.every
        return self.step % cycle >= cycle - round(self.options.sleep * cycle)

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.slept = self.asleep
        if self.slept:
            rng = seeding.stream(self.config.seed, "hst", "sleep", self.step)
            drawn = self.reservoir.draw(len(rows), rng)
            rows = torch.cat([self.rows(p, np.array([n])) for p, n in drawn])
        # What lives stands out among its own, as it was before the step.
        self.weak = {}
        for name in [name for name, weight in self.params.items() if "layers" in name]:
            weight = self.params[name].detach()
            if weight.dim() == 2:
                mask = self.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
                sizes = weight[mask].abs().sort(descending=True).values
                least = sizes[round(self.options.protected * len(sizes)) - 1]
                self.weak[name] = weight.abs() < least
        return super().loss(rows)

    def after_update(self) -> None:
        if (self.step + 1) % self.options.every:
            return
        for name, weak in self.weak.items():
            self.params[name][weak] *= 1.0 - self.options.down_scaling

    def after_step(self) -> None:
        if self.slept:
            return
        size = self.config.batch.sequences
        numbers = np.arange(size) + size * self.phase_step
        names = np.stack([np.full_like(numbers, self.phase), numbers], axis=1)
        rng = seeding.stream(self.config.seed, "hst", "insert", self.step)
        self.reservoir.insert(names, rng)
