"""SET and RigL with a global mask in one process, as their papers write them."""

from typing import Any

import torch
from torch import Tensor

from sparsecl import seeding
from tests.distributed.references.run import ReferenceRun


class Rewired(ReferenceRun):
    """A mask that moves; weight and moments of what was dropped are zero."""

    def move(self, name: str, keep: Tensor, grown: Tensor) -> None:
        """Give a matrix the live set `keep` and `grown`, bool of its shape."""
        weight, mask = self.params[name], self.masks[name]
        mask.copy_(keep | grown)
        new_or_gone = ~keep
        with torch.no_grad():
            for tensor in (weight, *self.moments(weight)):
                tensor[new_or_gone] = 0.0

    def moments(self, weight: Tensor) -> list[Tensor]:
        state: Any = self.optimizer.state.get(weight, {})
        return [state[key] for key in ("exp_avg", "exp_avg_sq") if key in state]


class SetReference(Rewired):
    def after_step(self) -> None:
        options = self.config.methods.set
        if self.step % options.every:
            return
        for name, mask in self.masks.items():
            weight, keep = self.params[name], mask.clone()
            for side in (weight > 0, weight < 0):
                alive = sorted((abs(float(weight[tuple(i)])), *i) for i in side.nonzero().tolist())
                for _, row, column in alive[: int(options.drop_fraction * len(alive))]:
                    keep[row, column] = False
            rng = seeding.stream(self.config.seed, "set", name, self.step, 0)
            empty = (~mask).view(-1).nonzero().view(-1)
            num = int(mask.sum() - keep.sum())
            grown = torch.zeros_like(mask)
            grown.view(-1)[empty[torch.from_numpy(rng.choice(len(empty), num, replace=False))]] = 1
            self.move(name, keep, grown)
