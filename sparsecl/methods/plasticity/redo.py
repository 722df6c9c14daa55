"""ReDo: now and then all units that say little begin anew.

Source: Sokar, Agarwal, Castro & Evci 2023, The dormant neuron phenomenon in deep reinforcement
learning (https://arxiv.org/abs/2302.12902), and the code google/dopamine (labs/redo). The score of
a unit is its mean |h| over that of its layer; every `every` steps all units of score <= `tau` get
fresh incoming weights and outgoing ones of zero. `moments`: dopamine sets Adam's moments of these
weights to zero; the code of Dohare et al. 2024 (shibhansh/loss-of-plasticity) lets them stay.

Differs: |h| is that of all tokens of the step, in place of a batch of its own. A unit that nothing
feeds counts in the mean of its layer and is left alone. Biases have their moments treated as
weights have. Behind a step that was discarded or skipped no unit begins anew.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.many_steps import ManySteps
from sparsecl.methods.plasticity.config import RedoConfig
from sparsecl.methods.plasticity.renewal import Renewal


class Redo(Renewal):
    """Each look is at one step alone, so there is nothing to keep but a count."""

    name = "redo"
    config: RedoConfig

    def step_start(self, context: MethodContext) -> None:
        if (context.progress.step + 1) % self.config.every == 0:
            context.arm_units()

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        if not applied or context.progress.step % self.config.every:
            return
        figures = context.unit_figures()
        for name, group in context.units.items():
            found = figures[name]
            # A product, so that in a layer that is silent as a whole all units are dormant.
            dormant = found.mean_abs <= self.config.tau * found.mean_abs.mean(-1, keepdim=True)
            able = (dormant & (found.incoming > 0)).cpu().numpy()
            for network in np.ndindex(context.networks):
                units = np.flatnonzero(able[network])
                if len(units):
                    moments = self.config.moments == "reset"
                    self.renew(context, name, group, units, network, moments=moments)

    def many_steps(self, context: MethodContext) -> ManySteps | None:
        if self.restart.kind != "global":
            return None
        every = self.config.every
        return ManySteps(idle=every - 1 - context.progress.step % every)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return self.restart.state(), {"num_replaced": self.num_replaced}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        self.restart.check_state(tensors)
        if values["num_replaced"] < 0:
            raise ValueError(f"num_replaced: {values['num_replaced']} is no count")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.restart.load_state(tensors)
        self.num_replaced = values["num_replaced"]
