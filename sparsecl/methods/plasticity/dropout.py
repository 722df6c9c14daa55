"""Dropout of hidden units: in training each is silent with some probability.

Source: Srivastava et al. 2014 (https://jmlr.org/papers/v15/srivastava14a.html), in the form of Gal
& Ghahramani 2016 (https://arxiv.org/abs/1512.05287): one draw for each sequence and unit, the same
at all positions of the sequence. For a network whose rows are single samples both are the same. A
unit that speaks is multiplied by 1 / (1 - p), so that nothing needs to be done in a test.

Differs: only the hidden units of the feed-forward parts, neither attention nor embedding. A draw
depends on the seed, the step, where the sequence comes from and the unit, and on nothing else: so
it is the same in every layout, when a block is computed again, and after a resume; a sequence that
comes twice in a step has the same draw twice. A unit's figures (`cbp`, `redo`) are of what it would
say. Passes beside the step, of tests and of other methods, have all units.
"""

import torch
from torch import Tensor

from sparsecl.methods.base import Method, Order
from sparsecl.methods.context import Batch, MethodContext
from sparsecl.methods.model_side import ModelSide
from sparsecl.methods.noise import uniform
from sparsecl.methods.plasticity.config import DropoutConfig
from sparsecl.sparse.units import UnitGroup

PHASE = 1 << 32
"""More sequences than a phase has."""


class Dropout(Method):
    """There is no state to keep. It draws for the rows that the other methods have put together."""

    name = "dropout"
    order = Order.GATE
    config: DropoutConfig

    def attach(self, model: ModelSide, num_phases: int) -> None:
        model.units()

    def batch(self, context: MethodContext, batch: Batch) -> Batch:
        if self.config.p:
            phases, numbers = torch.from_numpy(batch.origin).unbind(1)
            rows = (phases + 1) * PHASE + numbers
            for name, group in context.units.items():
                names = (self.name, name, context.progress.step)
                key = int(context.generator(*names).integers(2**63))
                group.thin(self._factors(key, rows.to(group.factors.device), group))
        return batch

    def _factors(self, key: int, rows: Tensor, group: UnitGroup) -> Tensor:
        """[B, n_local] of 0 and 1 / (1 - p)."""
        units = torch.arange(group.num_units, device=rows.device)[group.local]
        drawn = uniform(key, rows[:, None] * group.num_units + units)
        return (drawn >= self.config.p).float().div_(1.0 - self.config.p)
