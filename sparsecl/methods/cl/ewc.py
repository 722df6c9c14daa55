"""Elastic weight consolidation: a quadratic spring to the weights that earlier domains needed.

Sources: Kirkpatrick et al. 2017 (arXiv 1612.00796): loss + sum_i lambda/2 F_i (theta - theta_i)^2,
one anchor per domain. Online variant, Schwarz et al. 2018 (arXiv 1805.06370): F <- gamma F + F_new
and one anchor, the latest weights.

Differs: the sum over anchors is kept as two numbers per weight, P = sum F_i and Q = sum F_i
theta_i, because the gradient of the penalty is lambda (P theta - Q) whatever the number of domains.
F is the empirical Fisher per sequence (data labels, gradient of the mean loss per token): other
conventions scale lambda by constants, so lambda is only comparable within one convention.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from sparsecl.methods.base import Method
from sparsecl.methods.cl.config import EwcConfig
from sparsecl.methods.context import MethodContext, SliceTensors


class Ewc(Method):
    """EWC on slices: importance and anchor live beside the master, whatever the ZeRO stage.

    A method that measures importance in another way is a relative of it.
    """

    name = "ewc"

    config: EwcConfig

    def __init__(self, config: EwcConfig) -> None:
        super().__init__(config)
        self.precision: SliceTensors = {}  # P
        self.target: SliceTensors = {}  # Q

    def after_backward(self, context: MethodContext) -> None:
        """Add lambda (P theta - Q) to the reduced gradient."""
        if not self.precision or self.config.strength == 0.0:
            return
        for item in context.slices:
            pull = self.precision[item.name] * item.master - self.target[item.name]
            context.add_gradient(item, pull, self.config.strength)

    def phase_end(self, context: MethodContext) -> None:
        """Measure what this domain needs and take its anchor."""
        fishers = self.importance(context)
        for item in context.slices:
            fisher, weights = fishers[item.name].to(item.master.device), item.master
            old = self.precision.get(item.name, torch.zeros_like(fisher))
            if self.config.variant == "online":
                self.precision[item.name] = self.config.gamma * old + fisher
                self.target[item.name] = self.precision[item.name] * weights
            else:
                self.precision[item.name] = old + fisher
                held = self.target.get(item.name, torch.zeros_like(fisher))
                self.target[item.name] = held + fisher * weights

    def importance(self, context: MethodContext) -> SliceTensors:
        """F of the phase that ends, >= 0, for every slice. Collective."""
        rows = context.rows(context.progress.phase, np.arange(self.config.sequences))
        return context.mean_gradients(rows, each=torch.square)

    def slice_tensors(self) -> Iterable[SliceTensors]:
        """A weight that is dropped takes its spring with it."""
        return (self.precision, self.target)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        if not self.precision:
            return {}, {}
        return {"precision": self.precision, "target": self.target}, {}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        if set(tensors) not in (set(), {"precision", "target"}):
            raise ValueError(f"it keeps precision and target, not {', '.join(sorted(tensors))}")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.precision = dict(tensors.get("precision", {}))
        self.target = dict(tensors.get("target", {}))
