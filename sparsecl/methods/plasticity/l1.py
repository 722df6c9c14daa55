"""L1: a constant pull on every weight, towards zero or towards where it began.

Sources: soft thresholding, the proximal step of the lasso: d <- sign(d) max(|d| - lr lambda, 0).
With the distance from earlier weights, ||theta - theta_0||_1, the penalty of Gong et al. 2022
(Findings of ACL, "Finding the Dominant Winning Ticket in Pre-Trained Language Models"), where the
weights that move nevertheless are the ticket.

Differs: of that paper we know the abstract, and there is no public code. So the form, lambda and
what counts as moved are our own reading. With Adam a subgradient never gives an exact zero, so the
proximal step is the default; it comes after the optimizer's step, with its learning rate, decoupled
from Adam. One step of Adam is about lr long: lambda is the share of it that is taken back.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.plasticity.config import L1Config
from sparsecl.optim.slice import Slice


class L1(Method):
    """Works on live weights: what is absent or held is put back after it."""

    name = "l1"

    config: L1Config

    def __init__(self, config: L1Config) -> None:
        super().__init__(config)
        self.start: SliceTensors = {}
        """Weights at the start of the phase, where they are what the distance is from."""

    def phase_start(self, context: MethodContext) -> None:
        if self.config.anchored:
            self.start = {item.name: item.master.clone() for item in self._own(context.slices)}

    def began_anew(self, context: MethodContext) -> None:
        self.phase_start(context)

    def after_backward(self, context: MethodContext) -> None:
        if not self.config.strength or self.config.form != "subgradient":
            return
        for item in self._own(context.slices):
            context.add_gradient(item, self._distance(item).sign(), self.config.strength)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        if not self.config.strength or self.config.form != "proximal":
            return
        for item in self._own(items):
            distance = self._distance(item)
            taken = context.slices.lr(item) * self.config.strength
            left = distance.abs().sub_(taken).clamp_(min=0.0).mul_(distance.sign())
            if item.name in self.start:  # where nothing is left, the very bits of the start
                left.add_(self.start[item.name])
            item.master.copy_(left)

    def _own(self, items: Iterable[Slice]) -> list[Slice]:
        return [item for item in items if self.config.vectors or len(item.matrix_shape) >= 2]

    def _distance(self, item: Slice) -> torch.Tensor:
        start = self.start.get(item.name)
        return item.master.clone() if start is None else item.master - start

    def slice_tensors(self) -> Iterable[SliceTensors]:
        """A weight that is grown begins at zero, and so does its distance."""
        return (self.start,)

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return ({"start": self.start}, {}) if self.start else ({}, {})

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        if set(tensors) not in (set(), {"start"}):
            raise ValueError(f"it keeps start, not {', '.join(sorted(tensors))}")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.start = dict(tensors.get("start", {}))
