"""Springs: every weight is pulled to where earlier domains left it, the stronger the more they
needed it. EWC, SI and MAS differ in how they measure that need.

The penalty is sum_i F_i (theta - theta_i)^2 with one importance F_i and one anchor theta_i for each
domain. Two numbers a weight carry any number of domains, P = sum F_i and Q = sum F_i theta_i: the
gradient is 2 (P theta - Q). It is added in closed form to the reduced gradient, so it is neither
part of the loss that a run reports nor of what another method observes.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from sparsecl.errors import InvariantError
from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext, SliceTensors


class Spring(Method, ABC):
    """Importance and anchor beside the master, whatever the ZeRO stage.

    A relative says how strong the pull is (`stiffness`) and how it measures what a domain needs
    (`importance`).
    """

    precision: SliceTensors
    """P; empty until the first domain has ended."""

    target: SliceTensors
    """Q."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.precision, self.target = {}, {}

    @property
    @abstractmethod
    def stiffness(self) -> float:
        """What P theta - Q is multiplied by; 0 is plain training, bit for bit."""

    @abstractmethod
    def importance(self, context: MethodContext) -> SliceTensors:
        """F of the phase that ends, for every slice. Collective."""

    def after_backward(self, context: MethodContext) -> None:
        """Add stiffness (P theta - Q) to the reduced gradient."""
        if not self.precision or self.stiffness == 0.0:
            return
        for item in context.slices:
            pull = self.precision[item.name] * item.master - self.target[item.name]
            context.add_gradient(item, pull, self.stiffness)

    def phase_end(self, context: MethodContext) -> None:
        """Measure what this domain needs and take its anchor.

        Raises:
            InvariantError: on all ranks, if an importance is not finite: the pull would be NaN.
        """
        found = self.importance(context)
        bad = {name: (~value.isfinite()).any().float().view(1) for name, value in found.items()}
        if context.maximum(bad) > 0.0:
            raise InvariantError(
                f"methods.{self.name}: an importance of phase {context.progress.phase} is not "
                "finite. Use precision=bf16 or fp32, or lower optimizer.lr."
            )
        for item in context.slices:
            self.fasten(item.name, found[item.name].to(item.master.device), item.master)

    def fasten(self, name: str, importance: torch.Tensor, weights: torch.Tensor) -> None:
        """Add a domain's importance [numel] to those before; all are anchored at the `weights` of
        now. Local."""
        old = self.precision.get(name, torch.zeros_like(importance))
        self.precision[name] = old + importance
        self.target[name] = self.precision[name] * weights

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
