"""Drop and grow: what all methods share that move the topology and keep its density.

A relative says which live weights go and which cells live instead. In masked storage it chooses
over the whole matrix of a layer, so the graph is the same whatever the tensor-parallel size. In
packed storage each tensor-parallel slice keeps its count and chooses for itself.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.dst.config import RewireConfig
from sparsecl.methods.restart import AdamRestart
from sparsecl.optim.slice import Slice


@dataclass(frozen=True, eq=False)
class LayerView:
    """One layer as a rewire sees it, flat: a whole matrix, or this rank's slice in packed storage.
    N = live weights. On the CPU, the same on all ranks that decide together."""

    name: str
    part: int
    """Of the matrix, for random streams: 0, or the tensor-parallel rank in packed storage."""

    live: Tensor
    """bool [cells]."""

    values: Tensor
    """fp32 [N], masters of the live weights, in the order of `places`."""

    @property
    def places(self) -> Tensor:
        """int64 [N], the cells that live."""
        return self.live.nonzero().view(-1)

    @property
    def absent(self) -> Tensor:
        """int64 [cells - N], the others."""
        return (~self.live).nonzero().view(-1)


def look(context: MethodContext, name: str) -> LayerView:
    """What a rewire of one layer chooses over. Collective over dp, in masked storage also tp."""
    layer = context.sparse[name].layer
    if layer.packed:
        live, values = layer.live_mask().view(-1), context.live_values(name).cpu()
        return LayerView(name, layer.tp_rank, live, values)
    assert layer.topology is not None
    live = torch.from_numpy(layer.topology.mask()).view(-1)
    return LayerView(name, 0, live, context.matrix(name).cpu().view(-1)[live])


def as_chosen(context: MethodContext, name: str, local: Tensor) -> Tensor:
    """A tp-local matrix [O_local, I_local] in the form of `LayerView.live`, [cells]. In masked
    storage collective over tp."""
    packed = context.sparse[name].layer.packed
    return (local if packed else context.joined(name, local)).reshape(-1)


def cosine(step: int, end: int) -> float:
    """Factor of a drop fraction: 1 at step 0, 0 at `end` and after it."""
    return (1.0 + math.cos(math.pi * min(step / max(end, 1), 1.0))) / 2.0


class DropAndGrow(Method, ABC):
    """The skeleton; `drop` and `grow` are what a relative means."""

    config: RewireConfig

    def __init__(self, config: RewireConfig) -> None:
        super().__init__(config)
        self.restart = AdamRestart(config.adam_restart)

    @abstractmethod
    def drop(self, context: MethodContext, choice: LayerView) -> Tensor:
        """Which live weights go: int64 [K] into `choice.values`, the first first."""

    @abstractmethod
    def grow(self, context: MethodContext, choice: LayerView, dropped: Tensor) -> Tensor:
        """Which cells live instead: int64, as many as `dropped` [K], or fewer if there is no room.
        A cell that was just dropped may be among them; it stays as it is then."""

    def rewire(self, context: MethodContext, names: Iterable[str] | None = None) -> None:
        """Drop and grow in every layer. Collective over the world."""
        for name in context.sparse if names is None else names:
            choice = look(context, name)
            dropped = choice.places[self.drop(context, choice)]
            grown = self.grow(context, choice, dropped)
            dropped = dropped[: grown.numel()]  # a nearly full layer has less room than it drops
            stays = torch.isin(dropped, grown)
            comes = ~torch.isin(grown, dropped)
            new = context.rewire(name, dropped[~stays], grown[comes])
            self.restart.mark(context, name, new)

    def phase_start(self, context: MethodContext) -> None:
        self.restart.phase_start(context)

    def after_update(self, context: MethodContext, items: Collection[Slice]) -> None:
        self.restart.after_update(context, items)

    def slice_tensors(self) -> Iterable[SliceTensors]:
        return self.restart.slice_tensors()

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return self.restart.state(), {}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        self.restart.check_state(tensors)

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.restart.load_state(tensors)
