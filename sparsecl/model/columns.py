"""Columns: networks side by side, of which each hears the hidden units of those before it.

Source: Rusu et al. 2016, https://arxiv.org/abs/1606.04671, section 2, with the adapters of 2.2. A
column is a whole GPT: embedding, positions, blocks, norms and head of its own. In each block of
column k the feed-forward part adds to what goes into its nonlinearity

    U relu(sum over j < k of V_j (a_j * h_j)),

h_j the hidden units of the same block of column j, a_j one factor for each of them, V_j [R, M] and
U [M, R] of rank R. Only column k learns from it: earlier ones run without gradients, later ones
not at all. The paper's layers are a chain and hear the layer below; here a block hears its equal.

Under tensor parallelism hidden units are split over ranks, and so are the columns of V and the rows
of U; between the two, [.., R] is summed over tp.

M = hidden units, `_local` = this tensor-parallel rank's share.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsecl import dist
from sparsecl.sparse.linear import mark_tensor_parallel
from sparsecl.sparse.parallel import enter_tensor_parallel, leave_tensor_parallel

LARGEST_SCALE = 0.1
"""Factors a start between 0 and this (public code)."""

Heard = tuple[Tensor, ...]
"""Hidden units [..., M_local] of one block, of each column up to now."""


class Lateral(nn.Module):
    """What one block of a column hears. Uninitialised; see init.py."""

    def __init__(self, num_earlier: int, hidden: int, rank: int) -> None:
        """Allocate this rank's share; hidden: M, global."""
        super().__init__()
        local = hidden // dist.tp_size()
        self.num_earlier = num_earlier
        self.up = mark_tensor_parallel(nn.Parameter(torch.empty(local, rank)), 0)
        for place in range(num_earlier):
            scale, down = torch.empty(local), torch.empty(rank, local)
            self.register_parameter(f"scale{place}", mark_tensor_parallel(nn.Parameter(scale), 0))
            self.register_parameter(f"down{place}", mark_tensor_parallel(nn.Parameter(down), 1))
        # Attributes, so that a compiled model can leave them out of its graphs (compiled.py).
        self.enter, self.exchange = enter_tensor_parallel, leave_tensor_parallel

    def forward(self, heard: Heard) -> Tensor:
        """[..., M_local] of each earlier column -> [..., M_local]. Collective over tp."""
        assert len(heard) == self.num_earlier, (len(heard), self.num_earlier)
        y = None
        for place, hidden in enumerate(heard):
            # The factors go to V's columns: autograd then keeps the hidden units once.
            down = getattr(self, f"down{place}") * getattr(self, f"scale{place}")
            part = F.linear(hidden, down)
            y = part if y is None else y + part
        assert y is not None
        return F.linear(self.enter(F.relu(self.exchange(y))), self.up)


class Columns(nn.ModuleDict):
    """The columns after the first, by their numbers from 1, and which column is open."""

    def __init__(self, later: Sequence[nn.Module]) -> None:
        super().__init__({str(number): column for number, column in enumerate(later, start=1)})
        self.open = 0
        """The column that speaks and learns; those before it are heard, later ones do not run."""

    def up_to_open(self) -> list[Any]:
        """Those of them that run."""
        return [self[str(number)] for number in range(1, self.open + 1)]


def features(columns: Sequence[Any], tokens: Tensor, *, spread: bool, recompute: bool) -> Tensor:
    """Normed features of the last of `columns` (GPTs), block by block through all of them.

    Only the last keeps a graph. Collective over tp.

    Args:
        tokens: int64 [B, T], or [T, B] if spread.
        recompute: make the last column's blocks again in the backward pass.

    Returns:
        [B, T, W], or [T / tp, B, W] if spread.
    """
    *earlier, last = columns
    with torch.no_grad():
        entered = [column.entered(tokens, spread) for column in earlier]
    x, angles = last.entered(tokens, spread)
    for index, block in enumerate(last.layers):
        heard: Heard = ()
        with torch.no_grad():
            for place, column in enumerate(earlier):
                below, turns = entered[place]
                above, hidden = column.layers[index].with_hidden(below, spread, turns, heard)
                entered[place] = above, turns
                heard = (*heard, hidden)
        if recompute:
            # Nothing random happens in a block, so the generator need not be saved.
            x = checkpoint(
                block, x, spread, angles, heard, use_reentrant=False, preserve_rng_state=False
            )
        else:
            x = block(x, spread, angles, heard)
    return last.norm(x, spread)
