"""EWC as the paper writes it: one spring for each domain, differentiated by autograd."""

import numpy as np
import torch

from tests.distributed.references.run import ReferenceRun


class EwcReference(ReferenceRun):
    springs: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def phase_start(self) -> None:
        self.springs = self.springs if self.phase else []

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, _ = super().loss(rows)
        penalty = sum(
            (fisher[name] * (self.params[name] - anchor[name]) ** 2).sum() / 2
            for fisher, anchor in self.springs
            for name in self.params
        )
        return loss, loss + self.config.methods.ewc.strength * penalty

    def phase_end(self) -> None:
        """The empirical Fisher per sequence, and the weights it was measured at."""
        sequences = self.config.methods.ewc.sequences
        fisher = {name: torch.zeros_like(p) for name, p in self.params.items()}
        for row in self.rows(self.phase, np.arange(sequences)):
            loss = self.model.loss(row[None, :-1], row[None, 1:])
            gradients = torch.autograd.grad(loss, list(self.params.values()))
            for name, gradient in zip(self.params, gradients, strict=True):
                fisher[name] += gradient**2 / sequences
        anchor = {name: p.detach().clone() for name, p in self.params.items()}
        self.springs = [*self.springs, (fisher, anchor)]
