"""Synaptic intelligence: a weight is important if its way through training has lowered the loss.

Source: Zenke et al. 2017, https://arxiv.org/abs/1703.04200; public code aimagelab/mammoth (si) and
nmasse/Context-Dependent-Gating. Along a phase omega sums -g dtheta, where g is the gradient of the
loss alone and dtheta what the whole step moved; at its end Omega += omega / (D^2 + xi), D being the
way of the whole phase. Loss + c sum Omega (theta - theta*)^2, theta* the latest weights: the
gradient of the penalty is 2 c Omega (theta - theta*).

g is the reduced gradient before any penalty and before clipping: this method is the first to see
it (Order.OBSERVE). What other methods add to the loss itself (`Method.loss`) is part of it. Under
Adam the sum of omega exceeds the decrease of the loss: its steps are not along the gradient. omega
may be negative: mammoth keeps it so (`negative: keep`), the code of XdG sets it to zero (`clip`).
Differs: mammoth clips the penalty's gradient to 1 value by value; here only optimizer.clip counts.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from sparsecl.methods.base import Order
from sparsecl.methods.cl.config import SiConfig
from sparsecl.methods.cl.spring import Spring
from sparsecl.methods.context import MethodContext, SliceTensors


class Si(Spring):
    """A spring as stiff as a phase's path integral says."""

    name = "si"
    order = Order.OBSERVE
    config: SiConfig

    def __init__(self, config: SiConfig) -> None:
        super().__init__(config)
        self.path: SliceTensors = {}
        """omega of this phase."""

        self.start: SliceTensors = {}
        """Weights at its begin."""

        # From the gradients of a step to its end: g, and the weights before it.
        self._gradient: SliceTensors = {}
        self._before: SliceTensors = {}

    @property
    def stiffness(self) -> float:
        return 2.0 * self.config.strength

    def phase_start(self, context: MethodContext) -> None:
        self.path = {item.name: torch.zeros_like(item.master) for item in context.slices}
        self.start = {item.name: item.master.clone() for item in context.slices}

    def began_anew(self, context: MethodContext) -> None:
        self.phase_start(context)  # the rest of the phase is all that it will see

    def after_backward(self, context: MethodContext) -> None:
        """Keep the gradient as the loss gives it, then pull."""
        self._gradient, self._before = {}, {}
        for item in context.slices:
            gradient = context.gradient(item)
            if gradient is not None:
                self._gradient[item.name] = gradient.to(item.master.device)
                self._before[item.name] = item.master.clone()
        super().after_backward(context)

    def after_step(self, context: MethodContext, *, applied: bool) -> None:
        """omega -= g dtheta; a step that was not made leaves no trace."""
        for item in context.slices if applied else ():
            if item.name in self._gradient:
                moved = self._before[item.name].sub_(item.master)
                self.path[item.name].addcmul_(self._gradient[item.name], moved)
        self._gradient, self._before = {}, {}

    def importance(self, context: MethodContext) -> SliceTensors:
        """omega / (D^2 + xi) of the phase that ends; below zero only where negatives are kept.
        Local."""
        found: SliceTensors = {}
        for item in context.slices:
            way = item.master - self.start[item.name]
            value = self.path[item.name] / (way.square() + self.config.xi)
            found[item.name] = value.clamp_(min=0.0) if self.config.negative == "clip" else value
        return found

    def slice_tensors(self) -> Iterable[SliceTensors]:
        return (*super().slice_tensors(), self.path, self.start)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        tensors, values = super().state_dict()
        return {
            **tensors,
            **({"path": self.path, "start": self.start} if self.path else {}),
        }, values

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        own = {"path", "start"} & set(tensors)
        if len(own) == 1:
            raise ValueError(f"it keeps path and start together, not {own.pop()} alone")
        super().check_state(sorted(set(tensors) - own), values)

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        super().load_state_dict(tensors, values)
        self.path, self.start = dict(tensors.get("path", {})), dict(tensors.get("start", {}))
