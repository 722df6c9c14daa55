"""Shrink and perturb on whole matrices, each drawn at once."""

import torch

from sparsecl import seeding
from sparsecl.methods.noise import normal
from tests.distributed.references.run import ReferenceRun


class ShrinkPerturbReference(ReferenceRun):
    def after_update(self) -> None:
        options = self.config.methods.shrink_perturb
        for name, weight in self.params.items():
            if weight.dim() == 1:
                continue
            names = ("noise", "shrink_perturb", self.step, name)
            key = int(seeding.stream(self.config.seed, *names).integers(2**63))
            noise = normal(key, torch.arange(weight.numel())).view_as(weight)
            weight.mul_(1.0 - self.lr * options.shrink).add_(options.sigma * noise)
            weight.mul_(self.masks.get(name, torch.ones_like(weight)))
