"""Chain removal: what leads to a hidden unit that nothing reads, or from one that nothing feeds.

Source: the public code of CHT (see scores.py). Units that two or three matrices of a block share:
hidden units of the feed-forward part, which `up` (and `gate`) feed and `down` reads; the features
of `v`, which `o` reads; and those of `q` and `k`, which are of no use without each other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

GROUPS = (
    (("mlp.up", 0), ("mlp.gate", 0), ("mlp.down", 1)),
    (("attention.v", 0), ("attention.o", 1)),
    (("attention.q", 0), ("attention.k", 0)),
)
"""Matrices of a block, and the dim along which they have the units."""


def percolate(masks: Mapping[str, Tensor]) -> None:
    """Take out, in place, what no path through a shared unit uses; twice changes nothing.

    Args:
        masks: bool [O, I] by parameter (layers.3.mlp.up.weight). Dense matrices are not among them;
            their units are used. Matrices with another number of units (heads that share keys) are
            left out.
    """
    blocks = {name.rsplit(".", 3)[0] for name in masks}
    for block in sorted(blocks):
        for group in GROUPS:
            parts = [(masks.get(f"{block}.{name}.weight"), dim) for name, dim in group]
            known = [(mask, dim) for mask, dim in parts if mask is not None]
            if len({mask.shape[dim] for mask, dim in known}) != 1:
                continue
            used = torch.stack([mask.any(dim=1 - dim) for mask, dim in known]).all(dim=0)
            for mask, dim in known:
                mask &= used[:, None] if dim == 0 else used[None, :]
