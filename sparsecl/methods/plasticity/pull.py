"""What pulls at every weight: towards zero, or towards where it was at some start.

A relative says how (L1, L2) and when a start is taken. The start of a weight is kept beside its
master, whatever the ZeRO stage; without one the distance of a weight is the weight itself.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.optim.slice import Slice


class Pull(Method):
    """Works on live weights: what is absent or held is put back after it."""

    config: Any
    """With `strength` (0 = nothing happens), `vectors` and `anchored` (it keeps a start)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.start: SliceTensors = {}
        """Weights that distances are from, where there is something else than zero."""

    def take_start(self, context: MethodContext) -> None:
        """The weights of now are the start. Local."""
        if self.config.anchored:
            self.start = {item.name: item.master.clone() for item in self.own(context.slices)}

    def began_anew(self, context: MethodContext) -> None:
        self.take_start(context)

    def own(self, items: Iterable[Slice]) -> list[Slice]:
        """Those that are pulled: matrices, and vectors if they are asked for."""
        return [item for item in items if self.config.vectors or len(item.matrix_shape) >= 2]

    def distance(self, item: Slice) -> torch.Tensor:
        """fp32 [numel], the caller's."""
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
