"""Dropout on whole layers, one draw after another."""

import torch

from sparsecl import seeding
from sparsecl.methods.noise import uniform
from tests.distributed.references.run import ReferenceRun


class DropoutReference(ReferenceRun):
    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = self.config.methods.dropout.p
        numbers = torch.arange(len(rows)) + len(rows) * self.phase_step
        for i in range(self.model.layers):
            name = f"layers.{i}.mlp"
            n = len(self.params[f"{name}.up.weight"])
            key = int(seeding.stream(self.config.seed, "dropout", name, self.step).integers(2**63))
            places = ((self.phase + 1) * 2**32 + numbers)[:, None] * n + torch.arange(n)
            self.model.gates[name] = (uniform(key, places) >= p)[:, None] / (1 - p)
        found = super().loss(rows)
        self.model.gates.clear()
        return found
