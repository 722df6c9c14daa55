"""Learning without forgetting: on the new domain's text the model keeps to what it said before.

Source: Li & Hoiem 2016 (arXiv 1606.09282), and the public code of aimagelab/mammoth (lwf):

    L = CE(f(x), y) + alpha KD,   KD = -mean sum_c p_c log q_c

p = softmax(z_old / tau) of the model at the end of the phase before, q = softmax(z / tau) of the
model in training, both on the new domain's tokens, the mean over tokens. No factor of tau squared.

Differs: what is computed is KL(p || q) = KD - H(p): the entropy of the teacher has no gradient. The
teacher says what it thinks at each step, where the paper writes it down once a phase: that would be
a vocabulary of numbers for every token. All domains share one output layer: there is no head of a
new domain to be warmed up alone, and no old outputs apart from the new ones.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch

from sparsecl.methods.base import Method
from sparsecl.methods.cl.again import new_rows, no_way_on
from sparsecl.methods.cl.config import LwfConfig
from sparsecl.methods.context import Batch, MethodContext, Outputs, SliceTensors


class Lwf(Method):
    """The teacher is a frozen copy; its masters are kept as slices for a resume."""

    name = "lwf"
    config: LwfConfig

    def __init__(self, config: LwfConfig) -> None:
        super().__init__(config)
        self.needs_outputs = config.alpha > 0.0
        self.masters: SliceTensors = {}
        """Of the model at the end of the phase before; empty in the first phase."""

        self._teacher: Callable[[np.ndarray], Outputs] | None = None

    def phase_start(self, context: MethodContext) -> None:
        if context.progress.phase and self.config.alpha:
            self.masters = {item.name: item.master.clone() for item in context.slices}
            self._teacher = None  # one at a time: it has the size of the model
            self._teacher = context.frozen_copy()

    def resumed(self, context: MethodContext) -> None:
        self._teacher = None
        if context.progress.phase and context.progress.phase_step:  # else phase_start makes one
            self._teacher = context.frozen_copy(self.masters) if self.masters else None

    def began_anew(self, context: MethodContext) -> None:
        if context.progress.phase and context.progress.phase_step:
            raise no_way_on(self.name, "the model at the end of the phase before")

    def loss(self, context: MethodContext, batch: Batch, outputs: Outputs) -> torch.Tensor | None:
        if self._teacher is None:
            return None
        rows, _ = new_rows(context, batch)
        new = outputs if len(rows) == len(batch.rows) else outputs.select(rows)
        return self.config.alpha * new.kl(self._teacher(batch.rows[rows]), self.config.tau).mean()

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return {"masters": self.masters} if self.masters else {}, {}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        if set(tensors) not in (set(), {"masters"}):
            raise ValueError(f"it keeps masters, not {', '.join(sorted(tensors))}")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.masters = dict(tensors.get("masters", {}))
