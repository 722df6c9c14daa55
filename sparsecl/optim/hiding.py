"""Weights that the forward pass sees otherwise for a while: zero, or other values; then every bit
is back.

Masters and moments stay as they are, except where the master is the weight that the forward pass
uses (ZeRO 0 in fp32). So no step, audit or checkpoint may come in between.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import torch

from sparsecl.optim.deepspeed.parameters import is_cut, is_gathered
from sparsecl.optim.moving import whole
from sparsecl.optim.slices import Slices

Put = Callable[[torch.Tensor, torch.Tensor], object]
"""Changes a weight in place, given something of its shape."""


def hidden_weights(
    slices: Slices, hidden: Iterable[tuple[str, torch.Tensor]]
) -> AbstractContextManager[None]:
    """Around forward passes. Collective over dp at the end, if ZeRO shards weights.

    Takes a copy of the low-precision weights of these parameters (of this rank's shards, in ZeRO
    3), for as long as it lasts.

    Args:
        hidden: parameter name and bool of the shape of the tp-local parameter, equal on all dp
            ranks; read one at a time.
    """
    return _changed(slices, hidden, lambda old, where: old.masked_fill_(where.to(old.device), 0.0))


def shown_weights(
    slices: Slices, shown: Iterable[tuple[str, torch.Tensor]]
) -> AbstractContextManager[None]:
    """The same with values, of the shape of the tp-local parameter, in the place of weights."""
    return _changed(slices, shown, lambda old, value: old.copy_(value))


@contextlib.contextmanager
def _changed(slices: Slices, given: Iterable[tuple[str, torch.Tensor]], put: Put) -> Iterator[None]:
    params, kept = slices.parameters(), dict[str, torch.Tensor]()
    try:
        for name, what in given:
            kept[name] = _change(slices, name, what, put)
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
def _change(slices: Slices, name: str, what: torch.Tensor, put: Put) -> torch.Tensor:
    """Change one parameter. Returns what it was, as `_copy` has it. Local."""
    copy = _copy(slices, name)
    before = copy.clone()
    param, item = slices.parameters()[name], slices.find(name)
    if not is_cut(param):
        put(copy, what.view(copy.shape))
    elif item is not None:
        put(copy, item.part(what))
    if is_gathered(param):
        put(param.data, what.view(param.shape))
    return before


def _copy(slices: Slices, name: str) -> torch.Tensor:
    """What this rank keeps of a parameter for the forward pass: all of it, its shard in ZeRO 3."""
    param, item = slices.parameters()[name], slices.find(name)
    if not is_cut(param):
        return param.data
    return item.weight if item is not None else param.data.new_empty(0)
