"""A low-rank part beside a split linear: y += scale * B A x.

O = out_features, I = in_features, local to the tensor-parallel rank; R = rank. A [R, I] and
B [O, R] are split as the linear is: a column-parallel one splits B and every rank has the whole A,
a row-parallel one splits A. What a rank has whole it multiplies with its own share of the data, so
the gradient is summed over tp; the output is local, and goes through the linear's own exchange.

Differs from the usual form (all-reduce [.., R] before a replicated B): R x (I or O) numbers travel
once in a backward pass and none in a forward pass, whatever the number of tokens, and positions may
be spread over ranks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecl.sparse.linear import SparseLinear, mark_tensor_parallel
from sparsecl.sparse.parallel import summed_gradient


class LowRank(nn.Module):
    """Uninitialised A, and B = 0: at first the part changes nothing."""

    def __init__(self, linear: SparseLinear, rank: int, scale: float) -> None:
        super().__init__()
        out_local, in_local = linear.local_shape
        columns = linear.partition_dim == 0
        self.a = mark_tensor_parallel(
            nn.Parameter(torch.empty(rank, in_local)), -1 if columns else 1
        )
        self.b = mark_tensor_parallel(
            nn.Parameter(torch.zeros(out_local, rank)), 0 if columns else -1
        )
        self.splits_b, self.scale = columns, scale
        self.share = summed_gradient

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]. The backward pass is collective over tp."""
        a, b = (self.share(self.a), self.b) if self.splits_b else (self.a, self.share(self.b))
        return F.linear(F.linear(x, a), b) * self.scale
