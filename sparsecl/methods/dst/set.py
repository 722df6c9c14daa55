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
from sparsecl.methods.dst.choice import smallest
from sparsecl.methods.dst.clock import ahead
from sparsecl.methods.dst.config import SetConfig
from sparsecl.methods.many_steps import ManySteps


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
            for one in context.each():
                self.rewire(one)

    def many_steps(self, context: MethodContext) -> ManySteps | None:
        return self.idle_steps(context, ahead(context.progress))

    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        fraction, room = self.fraction(context.progress), choice.room
        # A nearly full layer has less room than it would drop.
        num = min(int(fraction * choice.values.numel()), room)
        if self.config.drop == "magnitude":
            return weakest(choice, num)
        if self.config.drop == "mest":
            gradient = as_chosen(context, choice.name, context.dense_gradient(choice.name))
            size = gradient[choice.places].abs().mul_(self.config.mest_gradient)
            return smallest(size.add_(choice.values.abs()), num)
        sides = [choice.values, -choice.values]
        counts = torch.stack([(side > 0).count_nonzero() for side in sides]).tolist()
        first, second = (int(fraction * count) for count in counts)
        nums = min(first, room), min(second, room - min(first, room))
        parts = [side.masked_fill(side <= 0, torch.inf) for side in sides]
        return smallest(parts[0], nums[0]) | smallest(parts[1], nums[1])

    def grow(self, context: MethodContext, choice: LayerView, dropped: Tensor) -> Tensor:
        """Evenly among the cells that were absent before."""
        return random_absent(context, self.name, choice, dropped.numel())
