"""L1 on whole matrices: soft thresholding after the step, or a sign beside the gradient."""

import torch

from tests.distributed.references.run import ReferenceRun


class L1Reference(ReferenceRun):
    def phase_start(self) -> None:
        start = self.config.methods.l1.towards == "start"
        self.start = {
            name: weight.detach().clone() if start else torch.zeros_like(weight)
            for name, weight in self.params.items()
        }

    def own(self) -> list[str]:
        vectors = self.config.methods.l1.vectors
        return [name for name, weight in self.params.items() if vectors or weight.dim() == 2]

    def after_backward(self) -> bool:
        options = self.config.methods.l1
        for name in self.own() if options.form == "subgradient" else ():
            weight = self.params[name]
            pull = (weight.detach() - self.start[name]).sign()
            weight.grad.add_(options.strength * pull)
        return True

    def after_update(self) -> None:
        options = self.config.methods.l1
        for name in self.own() if options.form == "proximal" else ():
            weight, start = self.params[name], self.start[name]
            left = torch.nn.functional.softshrink(weight - start, self.lr * options.strength)
            weight.copy_((start + left) * self.masks.get(name, torch.ones_like(weight)))
