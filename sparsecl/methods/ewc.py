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

import torch

from sparsecl.methods.base import Method, MethodContext, SliceTensors
from sparsecl.methods.config import EwcConfig


class Ewc(Method):
    """EWC on slices: importance and anchor live beside the master, whatever the ZeRO stage.

    A method that measures importance in another way is a relative of it.
    """

    name = "ewc"

    def __init__(self, config: EwcConfig) -> None:
        self.config = config
        self.precision: SliceTensors = {}  # P
        self.target: SliceTensors = {}  # Q

    @torch.no_grad()
    def after_backward(self, context: MethodContext) -> None:
        """Add lambda (P theta - Q) to the reduced gradient, before clipping."""
        if not self.precision or self.config.strength == 0.0:
            return
        scale = self.config.strength * context.slices.loss_scale
        for item in context.slices:
            gradient = context.slices.grad(item)
            if gradient is not None:
                pull = self.precision[item.name] * item.master - self.target[item.name]
                gradient.add_(pull.to(gradient.device), alpha=scale)
        context.slices.refresh_norms()

    @torch.no_grad()
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
        return context.mean_squared_gradients(num_sequences=self.config.sequences)

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
