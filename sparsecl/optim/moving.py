"""Whole parameters out of slices and back: what a rewire needs, whatever the ZeRO stage.

N = elements of the tp-local parameter in its storage's form.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch

from sparsecl import dist
from sparsecl.optim.deepspeed.parameters import is_cut, is_gathered, num_elements
from sparsecl.optim.slice import Slice
from sparsecl.optim.slices import Slices
from sparsecl.optim.zeroing import zero_absent

SliceParts = Mapping[str, torch.Tensor]

MoveFn = Callable[[torch.Tensor], torch.Tensor]
"""Old [N] -> new [N], elementwise or not."""


def whole(
    slices: Slices, item: Slice | None, part: torch.Tensor | None, numel: int
) -> torch.Tensor:
    """The tensor of which every dp rank holds its slice, fp32 [N]. Collective over dp if ZeRO
    shards the optimizer's state, else local.

    Args:
        item: this rank's slice, or None if it holds none.
        part: its values, [item.numel].
    """
    result = torch.zeros(numel, device=dist.device())
    if item is not None and part is not None:
        item.part(result).copy_(part)
    if slices.partitioned:
        # Every element has one owner and is 0 elsewhere: a sum of bit patterns is that element, -0
        # and NaN included, which a sum of floats is not.
        dist.all_reduce(result.view(torch.int32), group=dist.dp_group())
    return result


def joined(local: torch.Tensor, dim: int) -> torch.Tensor:
    """The global tensor of which every tp rank holds a share along `dim` (-1 = all of it).
    Collective over tp."""
    if dim < 0 or dist.tp_size() == 1:
        return local
    shape = list(local.shape)
    shape[dim] *= dist.tp_size()
    result = local.new_zeros(shape)
    result.narrow(dim, dist.tp_rank() * local.shape[dim], local.shape[dim]).copy_(local)
    return dist.all_reduce(result, group=dist.tp_group())


def share(matrix: torch.Tensor, dim: int) -> torch.Tensor:
    """This tp rank's share of a global tensor along `dim`: the reverse of `joined`. Local."""
    return matrix if dim < 0 else matrix.chunk(dist.tp_size(), dim)[dist.tp_rank()]


def move_parameter(slices: Slices, name: str, param: Any, move: MoveFn) -> None:
    """Send weight, master and moments of one parameter to new places. Collective over dp."""
    item = slices.find(name)
    numel = num_elements(param)
    states = {"master": item.master, **slices.moments(item)} if item is not None else {}
    for key in ("master", *slices.moment_names()):
        moved = move(whole(slices, item, states.get(key), numel))
        if item is not None:
            states[key].copy_(item.part(moved))
        if key == "master":
            write_weight(param, moved, item)


def move_slices(
    slices: Slices, name: str, param: Any, tensors: MutableMapping[str, torch.Tensor], move: MoveFn
) -> None:
    """The same for a tensor that a method keeps beside each slice. Collective over dp."""
    item = slices.find(name)
    numel = num_elements(param)
    moved = move(whole(slices, item, tensors.get(name), numel))
    if item is not None and name in tensors:
        tensors[name].copy_(item.part(moved))


@torch.no_grad()
def clear(slices: Slices, name: str, where: torch.Tensor, others: Iterable[SliceParts]) -> None:
    """Set elements of one parameter to zero: weight, master, moments, and what methods keep beside
    its slice. Local.

    Args:
        where: bool, of the shape of the tp-local parameter.
        others: tensors of methods, by parameter name.
    """
    param, item = slices.parameters()[name], slices.find(name)
    if param.data.numel() == where.numel():  # not one that ZeRO-3 has cut up
        zero_absent((param.data,), where.to(param.device).view(param.data.shape))
    if item is None:
        return
    kept = [tensors[name] for tensors in others if name in tensors]
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in (item.weight, item.master, *slices.moments(item).values(), *kept):
        by_device.setdefault(tensor.device, []).append(tensor)
    for device, tensors in by_device.items():
        zero_absent(tensors, item.part(where).to(device))


def write_weight(
    param: Any, local: torch.Tensor, item: Slice | None, where: torch.Tensor | None = None
) -> None:
    """Set the forward pass's copy of a parameter from its whole tp-local value, everywhere or
    where `where`, bool of its shape, says. Local."""
    if not is_cut(param):
        put(param.data, local.view(param.shape), where)
        return
    if item is not None:
        put(item.weight, item.part(local), None if where is None else item.part(where))
    if is_gathered(param):
        put(param.data, local.view(param.data.shape), where)


def put(old: torch.Tensor, new: torch.Tensor, where: torch.Tensor | None) -> None:
    """Set a tensor, in place, from one of its shape; where `where` says, if it is given."""
    new = new.to(device=old.device, dtype=old.dtype)
    if where is None:
        old.copy_(new)
    else:
        old.copy_(torch.where(where.view(old.shape).to(old.device), new, old))
