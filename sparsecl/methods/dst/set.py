"""Sparse evolutionary training: drop the weakest weights, grow as many at random.

Source: Mocanu et al. 2018, https://doi.org/10.1038/s41467-018-04316-3, and its public code. In each
layer the fraction zeta of the smallest positive and of the largest (closest to zero) negative
weights goes; new weights start at zero.

Differs: a weight that was just dropped is not grown again in the same rewire. Counts are kept in
each tensor-parallel slice (sparse/rewire.py).
"""

import torch

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext
from sparsecl.methods.dst.config import SetConfig


class Set(Method):
    """SET: a method that changes `drop` or `grow` is a relative of it."""

    name = "set"
    config: SetConfig

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """Rewire every layer when it is due."""
        if not applied or context.progress.step % self.config.every:
            return
        for name, entry in context.sparse.items():
            live = entry.layer.live_mask().view(-1)
            places = live.nonzero().view(-1)
            drop = places[self.drop(context.live_values(name).cpu())]
            grow = self.grow(context, name, (~live).nonzero().view(-1), drop.numel())
            drop = drop[: grow.numel()]  # a nearly full layer has less room than it drops
            context.rewire(name, drop, grow)

    def drop(self, values: torch.Tensor) -> torch.Tensor:
        """Which live weights go, by their values [N]: the weakest first."""
        chosen = []
        for sign in (1.0, -1.0):
            of_sign = (values * sign > 0).nonzero().view(-1)
            num = int(self.config.drop_fraction * of_sign.numel())
            weakest = (values[of_sign] * sign).argsort(stable=True)[:num]
            chosen.append(of_sign[weakest])
        return torch.cat(chosen)

    def grow(
        self, context: MethodContext, name: str, absent: torch.Tensor, num: int
    ) -> torch.Tensor:
        """Which absent cells live from now on, `num` of them or all."""
        rng = context.generator(
            "set", name, context.progress.step, context.sparse[name].layer.tp_rank
        )
        chosen = rng.choice(absent.numel(), size=min(num, absent.numel()), replace=False)
        return absent[torch.from_numpy(chosen)]
