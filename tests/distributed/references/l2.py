"""L2 on whole matrices, towards zero or the first weights: a part of the loss."""

import torch

from tests.distributed.references.run import ReferenceRun


class L2Reference(ReferenceRun):
    def phase_start(self) -> None:
        methods = self.config.methods
        self.options = methods.l2 or methods.l2_init
        if self.phase == 0:
            kept = 0.0 if methods.l2 else 1.0
            self.origin = {name: kept * p.detach().clone() for name, p in self.params.items()}

    def loss(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, whole = super().loss(rows)
        pulled = [
            (weight - self.origin[name]).square().sum()
            for name, weight in self.params.items()
            if weight.dim() == 2 or self.options.vectors
        ]
        return loss, whole + 0.5 * self.options.strength * torch.stack(pulled).sum()
