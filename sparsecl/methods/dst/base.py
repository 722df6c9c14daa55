"""Drop and grow: what all methods share that move the topology and keep its density.

A relative says which live weights go and which cells live instead. In masked storage it chooses
over the whole matrix of a layer, so the graph is the same whatever the tensor-parallel size. In
packed storage each tensor-parallel slice keeps its count and chooses for itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext
from sparsecl.methods.dst.config import RewireConfig


@dataclass(frozen=True, eq=False)
class Choice:
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


def look(context: MethodContext, name: str) -> Choice:
    """What a rewire of one layer chooses over. Collective over dp, in masked storage also tp."""
    layer = context.sparse[name].layer
    if layer.packed:
        live, values = layer.live_mask().view(-1), context.live_values(name).cpu()
        return Choice(name, layer.tp_rank, live, values)
    assert layer.topology is not None
    live = torch.from_numpy(layer.topology.mask()).view(-1)
    return Choice(name, 0, live, context.matrix(name).cpu().view(-1)[live])


class DropAndGrow(Method):
    """The skeleton; `drop` and `grow` are what a relative means."""

    config: RewireConfig

    def __init__(self, config: RewireConfig) -> None:
        super().__init__(config)

    def drop(self, context: MethodContext, choice: Choice) -> Tensor:
        """Which live weights go: int64 [K] into `choice.values`, the first first."""
        raise NotImplementedError

    def grow(self, context: MethodContext, choice: Choice, dropped: Tensor) -> Tensor:
        """Which cells live instead: int64, as many as `dropped` [K], or fewer if there is no room.
        A cell that was just dropped may be among them; it stays as it is then."""
        raise NotImplementedError

    def rewire(self, context: MethodContext, names: Iterable[str] | None = None) -> None:
        """Drop and grow in every layer. Collective over the world."""
        for name in context.sparse if names is None else names:
            choice = look(context, name)
            dropped = choice.places[self.drop(context, choice)]
            grown = self.grow(context, choice, dropped)
            dropped = dropped[: grown.numel()]  # a nearly full layer has less room than it drops
            stays = torch.isin(dropped, grown)
            comes = ~torch.isin(grown, dropped)
            context.rewire(name, dropped[~stays], grown[comes])
