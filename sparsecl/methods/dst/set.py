"""Sparse evolutionary training: drop the weakest weights, grow as many at random.

Source: Mocanu et al. 2018, https://doi.org/10.1038/s41467-018-04316-3, and its public code. In each
layer the fraction zeta of the smallest positive and of the largest (closest to zero) negative
weights goes; new weights start at zero.

Differs: a weight that was just dropped is not grown again in the same rewire.
"""

import torch
from torch import Tensor

from sparsecl.methods.context import MethodContext
from sparsecl.methods.dst.base import DropAndGrow, LayerView
from sparsecl.methods.dst.config import SetConfig


class Set(DropAndGrow):
    """SET: the weights step, then the graph moves."""

    name = "set"
    config: SetConfig

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """Rewire every layer when it is due."""
        if applied and context.progress.step % self.config.every == 0:
            self.rewire(context)

    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        """The weakest of each sign."""
        chosen = []
        for sign in (1.0, -1.0):
            of_sign = (choice.values * sign > 0).nonzero().view(-1)
            num = int(self.config.drop_fraction * of_sign.numel())
            weakest = (choice.values[of_sign] * sign).argsort(stable=True)[:num]
            chosen.append(of_sign[weakest])
        return torch.cat(chosen)

    def grow(self, context: MethodContext, choice: LayerView, dropped: Tensor) -> Tensor:
        """Uniformly among the cells that were absent before."""
        absent = choice.absent
        rng = context.generator(self.name, choice.name, context.progress.step, choice.part)
        num = min(dropped.numel(), absent.numel())
        return absent[torch.from_numpy(rng.choice(absent.numel(), size=num, replace=False))]
