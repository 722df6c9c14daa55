"""Weights that the forward pass does not see for a while: zero in its copies, then every bit back.

Masters and moments stay as they are, except where the master is the weight that the forward pass
uses (ZeRO 0 in fp32). So no step, audit or checkpoint may come in between.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch

from sparsecl.optim.deepspeed.parameters import is_cut, is_gathered
from sparsecl.optim.moving import whole
from sparsecl.optim.slices import Slices


@contextlib.contextmanager
def hidden_weights(slices: Slices, hidden: Iterable[tuple[str, torch.Tensor]]) -> Iterator[None]:
    """Around forward passes. Collective over dp at the end, if ZeRO shards weights.

    Takes a copy of the low-precision weights of these parameters (of this rank's shards, in ZeRO
    3), for as long as it lasts.

    Args:
        hidden: parameter name and bool of the shape of the tp-local parameter, equal on all dp
            ranks; read one at a time.
    """
    params, kept = slices.parameters(), dict[str, torch.Tensor]()
    try:
        for name, where in hidden:
            kept[name] = _hide(slices, name, where)
        yield
    finally:
        for name, weight in kept.items():
            _copy(slices, name).copy_(weight)
    for name in kept:  # what ZeRO-3 has gathered is a second copy, maybe made while it lasted
        param = params[name]
        if is_gathered(param):
            item = slices.find(name)
            part = None if item is None else item.weight.float()
            param.data.copy_(whole(slices, item, part, param.data.numel()).view(param.shape))


@torch.no_grad()
def _hide(slices: Slices, name: str, where: torch.Tensor) -> torch.Tensor:
    """Set one parameter to zero at `where`. Returns what it was, as `_copy` has it. Local."""
    copy = _copy(slices, name)
    before = copy.clone()
    param, item = slices.parameters()[name], slices.find(name)
    if not is_cut(param):
        copy.masked_fill_(where.to(copy.device).view(copy.shape), 0.0)
    elif item is not None:
        copy.masked_fill_(item.part(where).to(copy.device), 0.0)
    if is_gathered(param):
        param.data.masked_fill_(where.to(param.device).view(param.shape), 0.0)
    return before


def _copy(slices: Slices, name: str) -> torch.Tensor:
    """What this rank keeps of a parameter for the forward pass: all of it, its shard in ZeRO 3."""
    param, item = slices.parameters()[name], slices.find(name)
    if not is_cut(param):
        return param.data
    return item.weight if item is not None else param.data.new_empty(0)
