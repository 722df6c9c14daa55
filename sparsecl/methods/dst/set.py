"""Sparse evolutionary training: drop the weakest weights, grow as many at random.

Source: Mocanu et al. 2018, https://doi.org/10.1038/s41467-018-04316-3, and its public code. In each
layer the fraction zeta of the smallest positive and of the largest (closest to zero) negative
weights goes; new weights start at zero. `drop: magnitude` takes the smallest |w|, as the SET of
google-research/rigl does. `drop: mest` also asks for the gradient, after MEST (Yuan et al. 2021,
https://arxiv.org/abs/2110.14032); only that rule is taken from there.

Differs: a weight that was just dropped is not grown again in the same rewire.
"""

import torch
from torch import Tensor

from sparsecl.methods.context import MethodContext
from sparsecl.methods.dst.base import DropAndGrow, LayerView, as_chosen, random_absent, weakest
from sparsecl.methods.dst.config import SetConfig


class Set(DropAndGrow):
    """SET: the weights step, then the graph moves."""

    name = "set"
    config: SetConfig

    def step_start(self, context: MethodContext) -> None:
        if self.config.drop == "mest" and self.is_due_before(context):
            context.arm_dense_gradients()

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """Rewire every layer when it is due."""
        if applied and self.is_due_after(context):
            self.rewire(context)

    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        fraction = self.fraction(context.progress)
        num = int(fraction * choice.values.numel())
        if self.config.drop == "magnitude":
            return weakest(choice, num)
        if self.config.drop == "mest":
            gradient = as_chosen(context, choice.name, context.dense_gradient(choice.name)).cpu()
            size = choice.values.abs() + self.config.mest_gradient * gradient[choice.live].abs()
            return size.argsort(stable=True)[:num]
        chosen = []
        for sign in (1.0, -1.0):
            of_sign = (choice.values * sign > 0).nonzero().view(-1)
            order = (choice.values[of_sign] * sign).argsort(stable=True)
            chosen.append(of_sign[order[: int(fraction * of_sign.numel())]])
        return torch.cat(chosen)

    def grow(self, context: MethodContext, choice: LayerView, dropped: Tensor) -> Tensor:
        """Evenly among the cells that were absent before."""
        return random_absent(context, self.name, choice, dropped.numel())
