"""DER++ as the authors' code has it: three passes, one loss. Draws are those of the method's own
reservoir; of the logits the largest are kept, as the method does."""

import numpy as np
import torch

from sparsecl import seeding
from sparsecl.methods.cl.config import DerppConfig
from sparsecl.methods.cl.reservoir import Reservoir
from tests.distributed.references.run import ReferenceRun


class DerppReference(ReferenceRun):
    block = "derpp"

    def phase_start(self) -> None:
        if self.phase == 0:
            self.begin(self.config.methods.derpp)

    def begin(self, options: DerppConfig) -> None:
        self.options, self.reservoir = options, Reservoir(options.sequences)
        self.then: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}

    def drawn(self, purpose: str, num: int) -> list[tuple[int, int]]:
        rng = seeding.stream(self.config.seed, self.block, purpose, self.step)
        return [(int(p), int(n)) for p, n in self.reservoir.draw(num, rng)]

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        options, (loss, whole) = self.options, super().loss(rows)
        if len(self.reservoir.names):
            num = round(options.share * len(rows))
            for name in self.drawn("logits", num):
                ids, logits, lse = self.then[name]
                now = self.model.logits(self.rows(name[0], np.array([name[1]]))[:, :-1])[0]
                apart = (now.gather(-1, ids) - logits).square().mean()
                apart = apart + options.rest * (now.logsumexp(-1) - lse).square().mean()
                whole = whole + options.alpha * apart / num
            again = [self.rows(p, np.array([n])) for p, n in self.drawn("labels", num)]
            whole = whole + options.beta * self.row_losses(torch.cat(again)).mean()
        with torch.no_grad():
            logits = self.model.logits(rows[:, :-1])
        self.said = [(*z.topk(options.top), z.logsumexp(-1)) for z in logits]
        return loss, whole

    def after_step(self) -> None:
        size = self.config.batch.sequences
        numbers = np.arange(size) + size * self.phase_step
        for number, (logits, ids, lse) in zip(numbers, self.said, strict=True):
            self.then[self.phase, int(number)] = ids, logits, lse
        names = np.stack([np.full_like(numbers, self.phase), numbers], axis=1)
        rng = seeding.stream(self.config.seed, "derpp", "insert", self.step - 1)
        self.reservoir.insert(names, rng)
