"""N-LoRA: a low-rank adapter for each domain, whose update is pulled to zero cell by cell.

Source: Yang et al. 2025, https://arxiv.org/abs/2410.10179: domain t trains A_t and B_t on
loss + l1 * |dW_t|_1, dW_t the product of the two, and holds them afterwards. Updates that are zero
nearly everywhere hit each other nearly nowhere, which implies that they are orthogonal.

`penalty: code_product` is what the public code has in its place: the sum of |A_t B_t|, r x r, which
exists for square linears only and is not the update. Differs: dW is B A without the factor alpha /
r, as in the paper's formula; earlier updates stay beside the base and are not merged into it, which
gives the same sum; the rest as pairs.py says.
"""

import torch
from torch import Tensor

from sparsecl.methods.adapters.config import CHUNK, NLoraConfig
from sparsecl.methods.adapters.pairs import Adapters
from sparsecl.methods.context import MethodContext


class NLora(Adapters):
    """Pulls the newest pair's update to zero."""

    name = "n_lora"
    config: NLoraConfig

    def after_backward(self, context: MethodContext) -> None:
        """The subgradient of the penalty in closed form."""
        begin, num = self.newest(context)
        if num == 0 or self.config.l1 == 0.0:
            return
        slope = update_slope if self.config.penalty == "dW" else product_slope
        for name, a, b in self.pairs(context):
            of_a, of_b = slope(a[begin : begin + num], b[:, begin : begin + num])
            self.add_gradient(context, name, of_a, self.config.l1)
            self.add_gradient(context, name.removesuffix("a") + "b", of_b, self.config.l1)


def update_slope(a: Tensor, b: Tensor, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Subgradients of sum |B A| by A [r, I] and B [O, r]: B^T S and S A^T, S = sign(B A) [O, I].

    Args:
        chunk: cells of S at a time.
    """
    of_a, of_b = torch.zeros_like(a), torch.empty_like(b)
    step = max(1, chunk // a.shape[1])
    for begin in range(0, len(b), step):
        rows = b[begin : begin + step]
        sign = (rows @ a).sign_()
        of_a += rows.T @ sign
        of_b[begin : begin + step] = sign @ a.T
    return of_a, of_b


def product_slope(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Subgradients of sum |A B| by A [r, n] and B [n, r]: S B^T and A^T S, S = sign(A B) [r, r]."""
    sign = (a @ b).sign_()
    return sign @ b.T, a.T @ sign
