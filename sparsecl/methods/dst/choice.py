"""Choosing among many on the device where they are: the same set on every device and rank.

Nothing is sorted on a CPU: numpy finds the value at the border in linear time, and what lies beyond
it is in. A GPU sorts by radix, without a host that waits.
"""

import numpy as np
import torch
from torch import Tensor

from sparsecl.methods.noise import mixed


def places(mask: Tensor) -> Tensor:
    """Where bool `mask` is true, int64 [n] into it flat, ascending."""
    if mask.device.type == "cpu":  # numpy counts and fills 3 times faster than torch does
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.reshape(-1).nonzero().view(-1)


def smallest(size: Tensor, num: int) -> Tensor:
    """bool [N]: the `num` smallest of size [N]; of equal ones the first."""
    if num > 0 and size.device.type == "cpu":
        edge = _edge(size, num)
        if not edge.isnan():
            chosen = size < edge
            tied = places(size == edge)
            chosen[tied[: num - int(chosen.count_nonzero())]] = True
            return chosen
    return by_sorting(size, num)


def by_sorting(size: Tensor, num: int) -> Tensor:
    """`smallest` on a GPU."""
    chosen = torch.zeros(size.shape, dtype=torch.bool, device=size.device)
    return chosen.index_fill_(0, size.argsort(stable=True)[:num], True)


def largest(score: Tensor, num: int) -> Tensor:
    """bool [N]: the `num` largest of score [N]; of equal ones the first."""
    return smallest(-score, num)


def highest(score: Tensor, num: int, key: int) -> Tensor:
    """bool [N]: the `num` largest of score [N]; of equal ones some at random, by `key` (noise.py)
    and their place."""
    if num == 0:
        return torch.zeros(score.shape, dtype=torch.bool, device=score.device)
    edge = -_edge(-score, num)
    chosen = score > edge
    tied = places(score == edge)
    order = mixed(key, tied).argsort()
    chosen[tied[order[: num - int(chosen.count_nonzero())]]] = True
    return chosen


def _edge(size: Tensor, num: int) -> Tensor:
    """The value of the `num`-th smallest, num >= 1, []."""
    if size.device.type == "cpu":
        return torch.from_numpy(np.partition(size.numpy(), num - 1))[num - 1]
    # Not kthvalue: it gives a row to a single block of a GPU.
    return size.sort().values[num - 1]
