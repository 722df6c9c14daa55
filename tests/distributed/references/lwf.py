"""LwF: cross entropy to the soft labels of a copy from the end of the phase before."""

import copy

import torch

from tests.distributed.references.run import ReferenceRun


class LwfReference(ReferenceRun):
    def phase_start(self) -> None:
        self.teacher = copy.deepcopy(self.model) if self.phase else None

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, whole = super().loss(rows)
        if self.teacher is not None:
            options, inputs = self.config.methods.lwf, rows[:, :-1]
            with torch.no_grad():
                p = (self.teacher.logits(inputs) / options.tau).softmax(-1)
            log_q = (self.model.logits(inputs) / options.tau).log_softmax(-1)
            whole = whole - options.alpha * (p * log_q).sum(-1).mean()
        return loss, whole
