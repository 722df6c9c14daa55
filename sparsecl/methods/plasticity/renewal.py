"""Units that begin anew: fresh incoming weights, outgoing weights of zero, and moments of zero.

So the network's function changes by the contribution of these units alone. A relative says when,
and which units; only live weights are drawn and set, so a unit keeps its links. Whoever chooses
leaves units alone that nothing feeds, since nothing can come of them.
"""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.model_side import ModelSide
from sparsecl.methods.restart import AdamRestart
from sparsecl.optim.slice import Slice
from sparsecl.sparse.units import UnitGroup


class Renewal(Method):
    """All ranks choose the same units."""

    config: Any
    """With `adam_restart`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_replaced = 0
        self.restart = AdamRestart(config.adam_restart)

    def attach(self, model: ModelSide, num_phases: int) -> None:
        model.units()

    def phase_start(self, context: MethodContext) -> None:
        self.restart.phase_start(context)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        self.restart.after_update(context, items)

    def renew(
        self,
        context: MethodContext,
        name: str,
        group: UnitGroup,
        units: NDArray[np.int64],
        network: tuple[int, ...] = (),
        *,
        moments: bool = True,
    ) -> None:
        """Let units [k] of a network's group begin anew, with moments of zero unless those are to
        stay. Between steps; every rank passes the same, in ascending order."""
        rng = context.network_generator(network, self.name, "fresh", name, context.progress.step)
        renewed = context.begin_anew(group, units, rng, network, moments=moments)
        for parameter, where in renewed.items():
            self.restart.mark(context, parameter, where)
        self.num_replaced += len(units)

    def slice_tensors(self) -> Iterable[SliceTensors]:
        return self.restart.slice_tensors()
