"""A-GEM and GEM on whole gradient vectors; GEM's problem by trying every set of active bounds."""

import itertools

import numpy as np
import torch
from torch import Tensor

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class AgemReference(ReferenceRun):
    name = "agem"

    def phase_start(self) -> None:
        if self.phase == 0:
            self.memory: list[np.ndarray] = []  # of each earlier phase
            self.bent = 0

    def drawn(self) -> list[list[tuple[int, int]]]:
        """Names of each reference's batch."""
        rng = seeding.stream(self.config.seed, self.name, "draw", self.step)
        names = [(phase, int(n)) for phase, some in enumerate(self.memory) for n in some]
        num = min(getattr(self.config.methods, self.name).sequences_per_step, len(names))
        return [[names[i] for i in np.sort(rng.choice(len(names), num, replace=False))]]

    def reference(self, names: list[tuple[int, int]]) -> Tensor:
        loss = self.row_losses(torch.cat([self.rows(p, np.array([n])) for p, n in names])).mean()
        return self.vector(torch.autograd.grad(loss, list(self.params.values())))

    def vector(self, gradients: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([gradient.reshape(-1).double() for gradient in gradients])

    def after_backward(self) -> bool:
        if self.memory:
            g = self.vector(tuple(param.grad for param in self.params.values()))
            r = torch.stack([self.reference(names) for names in self.drawn()])
            if (r @ g < 0).any():
                self.bent += 1
                g = self.projected(g, r)
                parts = g.float().split([param.numel() for param in self.params.values()])
                for param, part in zip(self.params.values(), parts, strict=True):
                    param.grad.copy_(part.view_as(param))
        return True

    def projected(self, g: Tensor, r: Tensor) -> Tensor:
        return g - (g @ r[0]) / (r[0] @ r[0]) * r[0]

    def phase_end(self) -> None:
        num = (self.phase_step + 1) * self.config.batch.sequences
        quota = min(getattr(self.config.methods, self.name).sequences, num)
        rng = seeding.stream(self.config.seed, self.name, "remember", self.phase)
        self.memory.append(np.sort(rng.choice(num, quota, replace=False)))


class GemReference(AgemReference):
    name = "gem"

    def drawn(self) -> list[list[tuple[int, int]]]:
        rng = seeding.stream(self.config.seed, self.name, "draw", self.step)
        found = []
        for phase, some in enumerate(self.memory):
            num = min(self.config.methods.gem.sequences_per_step, len(some))
            found.append(
                [(phase, int(some[i])) for i in np.sort(rng.choice(len(some), num, replace=False))]
            )
        return found

    def projected(self, g: Tensor, r: Tensor) -> Tensor:
        gram, margin = r @ r.T, self.config.methods.gem.margin
        tried = []
        for free in itertools.product((False, True), repeat=len(r)):
            v, free = torch.full((len(r),), margin, dtype=torch.float64), torch.tensor(free)
            pull = (r @ g + gram @ torch.where(free, 0.0, v))[free]
            v[free] = -torch.linalg.solve(gram[free][:, free], pull)
            if (v >= margin).all():
                tried.append((float(v @ gram @ v / 2 + v @ r @ g), v))
        return g + min(tried, key=lambda one: one[0])[1] @ r
