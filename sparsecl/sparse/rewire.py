"""Moving live weights, for both storages.

O = out_features, I = in_features, N = live weights; local where it says so.

Masked storage has room for every weight: a rewire chooses over the whole global matrix, any number
of weights may live afterwards, and the graph does not depend on the tensor-parallel size. In packed
storage the parameters, and with them the flat buffers of ZeRO, never change their size: each slice
chooses for itself and keeps its count, so a graph that is rewired depends on the tp size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.sparse.linear import SparseLinear


@dataclass(frozen=True, eq=False)
class IndexMap:
    """Where the elements of a rewired parameter come from, in the form of its storage (local)."""

    fresh: Tensor
    """bool [numel]: it begins at zero; in masked storage also what is absent from now on."""

    grown: Tensor
    """bool, of the parameter's shape: it lives from now on."""

    source: Tensor | None
    """int64 [numel], the old place of each element that is not fresh; None = where it is."""

    def move(self, old: Tensor) -> Tensor:
        """Old [numel] -> new [numel], of the parameter or of any state that has its form."""
        moved = old if self.source is None else old.take(self.source.to(old.device))
        return moved.masked_fill(self.fresh.to(old.device), 0.0)


def choices(layer: SparseLinear) -> Tensor:
    """What a rewire chooses over, bool, True = live, on the device of the run: the global matrix
    [O, I] in masked storage, this rank's slice of it in packed storage. Local."""
    assert layer.topology is not None
    if layer.packed or layer.tp_size == 1:
        return layer.live_mask().to(dist.device())
    return torch.from_numpy(layer.topology.mask()).to(dist.device())


def rewire(layer: SparseLinear, drop: Tensor, grow: Tensor) -> IndexMap:
    """Give the layer another topology with as many live weights. Equal indices on all dp ranks;
    in masked storage on all ranks, in packed storage collective over tp.

    The weight and its state are not touched: the caller moves them along the map.

    Args:
        drop: int64 [K], flat indices o * I + i into `choices`, live.
        grow: int64 [K], the same, absent. Grown weights start at zero, and so does their state.

    Returns:
        The map to move weight, master, moments and whatever else has the parameter's form.

    Raises:
        ValueError: if sizes differ, an index comes twice, a dropped weight is absent or a grown one
            is live.
    """
    mask = choices(layer)
    before = mask.view(-1)
    drop, grow = drop.to(mask.device), grow.to(mask.device)
    _check(before, drop, grow)
    after = before.clone()
    after[drop], after[grow] = False, True
    if not layer.packed:
        return set_live(layer, after.view(mask.shape))
    assert layer.topology is not None
    _give(layer, _global_mask(layer, after))
    # Slots are numbered by the live cells before them, so kept weights shift.
    slot = before.long().cumsum(0) - 1
    fresh = torch.zeros_like(before)
    fresh[grow] = True
    return IndexMap(fresh[after], fresh[after], slot[after].clamp(min=0))


def set_live(layer: SparseLinear, mask: Tensor) -> IndexMap:
    """Give a layer in masked storage any other topology. Local; equal masks on all ranks.

    Args:
        mask: bool [O, I] of the global matrix, True = live, on any device.

    Raises:
        ValueError: in packed storage.
    """
    if layer.packed:
        raise ValueError(f"{layer.shape.name}: packed storage keeps its number of live weights")
    before = layer.live_mask()
    _give(layer, mask)
    after = layer.live_mask()
    return IndexMap((before != after).view(-1), after & ~before, None)


def _give(layer: SparseLinear, mask: Tensor) -> None:
    """`set_topology` with the graph of a mask; it goes to the CPU once, for the checkpoint."""
    assert layer.topology is not None
    layer.set_topology(layer.topology.with_mask(mask.cpu().numpy()), mask)


def _check(live: Tensor, drop: Tensor, grow: Tensor) -> None:
    if drop.shape != grow.shape or drop.dim() != 1:
        raise ValueError(f"drop {list(drop.shape)} and grow {list(grow.shape)} must be [K], equal")
    faults = {
        "drop and grow must not name a weight twice": _repeats(drop) | _repeats(grow),
        "drop names a weight that is absent": ~live[drop].all(),
        "grow names a weight that is live": live[grow].any(),
    }
    # All at once: a GPU's host waits for each answer.
    for message, found in zip(faults, torch.stack(list(faults.values())).tolist(), strict=True):
        if found:
            raise ValueError(message)


def _repeats(places: Tensor) -> Tensor:
    """bool []: some place [K] comes twice."""
    ordered = places.sort().values
    return (ordered[1:] == ordered[:-1]).any()


def _global_mask(layer: SparseLinear, local: Tensor) -> Tensor:
    """The whole matrix's mask, from the slices of all tp ranks. Collective over tp."""
    if layer.tp_size == 1:
        return local.view(layer.local_shape)
    size = layer.shape.out_features, layer.shape.in_features
    whole = torch.zeros(size, dtype=torch.uint8, device=dist.device())
    width = layer.local_shape[layer.partition_dim]
    part = whole.narrow(layer.partition_dim, layer.tp_rank * width, width)
    part.copy_(local.view(layer.local_shape))
    return dist.all_reduce(whole, group=dist.tp_group()).bool()
