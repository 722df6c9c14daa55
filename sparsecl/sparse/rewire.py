"""Moving live weights: a drop and a growth of equal size, for both storages.

O = out_features, I = in_features, N = live weights, local to the tensor-parallel rank. Counts stay
equal in every tp slice, not only in the whole matrix: the parameters, and with them the flat
buffers of ZeRO, never change their size. So a graph that is rewired depends on the tp size, like
every decision that is taken per slice.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.sparse.linear import SparseLinear


@dataclass(frozen=True, eq=False)
class IndexMap:
    """Where the elements of a rewired parameter come from, in the form of its storage."""

    source: Tensor
    """int64 [numel], the old place of each element; -1 = it begins at zero."""

    def move(self, old: Tensor) -> Tensor:
        """Old [numel] -> new [numel], of the parameter or of any state that has its form."""
        source = self.source.to(old.device)
        return torch.where(source >= 0, old.take(source.clamp(min=0)), 0.0)


def rewire(layer: SparseLinear, drop: Tensor, grow: Tensor) -> IndexMap:
    """Give the layer another topology. Collective over tp; equal indices on all dp ranks.

    The weight and its state are not touched: the caller moves them along the map.

    Args:
        drop: int64 [K], flat indices o * I + i into the local matrix, live.
        grow: int64 [K], the same, absent. Grown weights start at zero, and so does their state.

    Returns:
        The map to move weight, master, moments and whatever else has the parameter's form.

    Raises:
        ValueError: if sizes differ, an index comes twice, a dropped weight is absent or a grown one
            is live.
    """
    before = layer.live_mask().view(-1)
    _check(before, drop, grow)
    after = before.clone()
    after[drop], after[grow] = False, True
    assert layer.topology is not None
    layer.set_topology(layer.topology.with_mask(_global_mask(layer, after).numpy()))
    if not layer.packed:
        source = torch.arange(before.numel())
        source[drop], source[grow] = -1, -1
        return IndexMap(source)
    # Slots are numbered by the live cells before them, so kept weights shift.
    slot = before.long().cumsum(0) - 1
    slot[grow] = -1
    return IndexMap(slot[after])


def _check(live: Tensor, drop: Tensor, grow: Tensor) -> None:
    if drop.shape != grow.shape or drop.dim() != 1:
        raise ValueError(f"drop {list(drop.shape)} and grow {list(grow.shape)} must be [K], equal")
    if drop.unique().numel() != drop.numel() or grow.unique().numel() != grow.numel():
        raise ValueError("drop and grow must not name a weight twice")
    if not live[drop].all():
        raise ValueError("drop names a weight that is absent")
    if live[grow].any():
        raise ValueError("grow names a weight that is live")


def _global_mask(layer: SparseLinear, local: Tensor) -> Tensor:
    """The whole matrix's mask, from the slices of all tp ranks. Collective over tp."""
    if layer.tp_size == 1:
        return local.view(layer.local_shape)
    whole = torch.zeros(layer.shape.out_features, layer.shape.in_features, dtype=torch.uint8)
    width = layer.local_shape[layer.partition_dim]
    part = whole.narrow(layer.partition_dim, layer.tp_rank * width, width)
    part.copy_(local.view(layer.local_shape))
    whole = whole.to(dist.device())
    return dist.all_reduce(whole, group=dist.tp_group()).cpu().bool()
