"""y = x W^T on masked storage: a dense weight whose absent entries never receive a gradient.

O = out_features, I = in_features (local to the tensor-parallel rank), `...` = any batch dims.

The forward pass does not mask: absent entries of W are exactly zero already (topology role), kept
so by the optimizer side, and a multiply per pass would only re-create what is there. The backward
pass zeroes the gradient of absent weights before anyone sees it: DeepSpeed reduces, clips and
accumulates live gradients only. Zeroing is by selection, never by multiplication: 0 * NaN is NaN.

The three matrix products are those of torch's own linear, in the same order of operands and on the
same layout, so that an all-live mask gives the bits of a dense layer.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecl.sparse.tap import DenseTap


class MaskedLinear(torch.autograd.Function):
    """Linear map with the weight gradient selected by a mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dead: Tensor, tap: DenseTap | None) -> Tensor:
        # The parameter itself is saved, not a view of it: under ZeRO-3 its storage is swapped out
        # after this call and back in before the backward pass, and a view would keep it alive.
        ctx.save_for_backward(x, weight, dead)
        ctx.tap = tap
        # Contiguous, so that torch folds the batch dims into one product also without autograd.
        return F.linear(x if x.dim() == 2 else x.contiguous(), weight)

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, dead = ctx.saved_tensors
        dy = grad_outputs[0].reshape(-1, weight.shape[0])
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = dy.mm(weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            dw = dy.t().mm(x.reshape(-1, x.shape[-1]))
            if ctx.tap is not None:
                ctx.tap.add(dw)
            # In place is safe: the product is fresh and nobody else holds it.
            dw.masked_fill_(dead, 0)
        return dx, dw, None, None


def masked_linear(
    x: Tensor, weight: Tensor, dead: Tensor | None, tap: DenseTap | None = None
) -> Tensor:
    """Multiply by a weight that lives on a topology.

    Args:
        x: [..., I].
        weight: [O, I], same dtype as x.
        dead: bool [O, I], True = absent: no gradient reaches that weight. None = dense layer.
        tap: takes the gradient of the whole matrix.

    Returns:
        [..., O].
    """
    if dead is None:
        return F.linear(x, weight)
    return MaskedLinear.apply(x, weight, dead, tap)  # pyright: ignore[reportReturnType]
