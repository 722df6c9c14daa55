"""The gradient of a whole matrix, of absent weights too: what a growth by gradients looks at.

O = out_features, I = in_features (local to the tensor-parallel rank). The backward pass of a layer
throws the gradient of absent weights away, or never makes it. While a tap is on the layer, each
backward pass leaves dy^T x here; without one nothing is computed and nothing kept.
"""

import torch
from torch import Tensor


class DenseTap:
    """Sum of a layer's dense gradients over the micro-batches of one step."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        """fp32 [O, I], as it comes from the backward pass: of this rank's tokens, times the loss
        scale. None until one has been."""

        self.reduced = False
        """`total` is the mean over data-parallel ranks, unscaled."""

    def add(self, gradient: Tensor) -> None:
        """Take the gradient [O, I] of one micro-batch; the caller may write to it afterwards."""
        if self.total is None:
            self.total = gradient.to(torch.float32, copy=True)
        else:
            self.total.add_(gradient)

    def add_product(self, dy: Tensor, x: Tensor) -> None:
        """Take dy^T x of folded activations, [..., O] and [..., I]."""
        self.add(dy.reshape(-1, dy.shape[-1]).t().mm(x.reshape(-1, x.shape[-1])))
