"""Rotary positions: the features of queries and keys are turned by angles that grow with position.

T = tokens, D = head width. Source: Su et al. 2021, https://arxiv.org/abs/2104.09864. Differs: pairs
are (i, i + D / 2) as in transformers (rotate_half), not (2i, 2i + 1) as in the paper and in Meta's
files; the two differ by a permutation of the rows of q and k, so weights must come in this order.
"""

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Cosines and sines of all positions. No parameter, and nothing of it is in a checkpoint."""

    table: Tensor
    """[2, context, D], computed in fp32."""

    def __init__(self, context: int, head_width: int, theta: float) -> None:
        super().__init__()
        powers = torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width
        angles = torch.outer(torch.arange(context).float(), 1.0 / theta**powers)
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("table", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, num_positions: int) -> Tensor:
        """Cosines and sines [2, T, D] of the first positions. Local."""
        return self.table[:, :num_positions]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """[B, H, T, D] turned by angles [2, T, D]. Local."""
    cos, sin = angles.unbind()
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
