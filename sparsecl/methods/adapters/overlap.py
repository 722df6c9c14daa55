"""What low-rank updates of several domains share: cells, input directions, rank.

Collision rate after Yang et al. 2025, N-LoRA (https://arxiv.org/abs/2410.10179): the share of cells
in which two updates are both nonzero. If there is none, the updates are orthogonal; the converse
does not hold. Own: a cell counts from ABOVE on, because a product of trained factors is nowhere
exactly zero, and the paper's threshold was not found; the overlap of the A's as a cosine in [0, 1];
the rank that the sum of all updates takes of what a linear has.

O = outputs, I = inputs, r = rank of a pair, P = number of pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsecl.methods.adapters.config import CHUNK

# A two-thousandth of a weight at the usual initial deviation, 0.02.
ABOVE = 1e-5


class Overlap:
    """Sums over the linears of a model."""

    def __init__(self) -> None:
        self._filled = self._collided = 0
        self._cells = self._cell_pairs = 0
        self._overlaps: list[float] = []
        self._ranks: list[int] = []
        self._limits: list[int] = []

    def see(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        """Take in the pairs of one linear: A [r, I] and B [O, r] of each, with all factors in B."""
        num, cells = len(a), b[0].shape[0] * a[0].shape[1]
        self._cells += num * cells
        self._cell_pairs += num * (num - 1) // 2 * cells
        step = max(1, CHUNK // a[0].shape[1])
        for begin in range(0, b[0].shape[0], step):
            rows = slice(begin, begin + step)
            size = (len(b[0][rows]), a[0].shape[1])
            count = torch.zeros(size, dtype=torch.int32, device=a[0].device)
            for up, down in zip(a, b, strict=True):
                count += ((down[rows] @ up).abs_() > ABOVE).to(count)
            self._filled += int(count.sum())
            # Of k updates in one cell k (k - 1) / 2 pairs collide.
            self._collided += int((count * (count - 1)).sum()) // 2
        self._overlaps += [cosine(a[i], a[j]) for i in range(num) for j in range(i)]
        self._ranks.append(rank_of_sum(a, b))
        self._limits.append(min(b[0].shape[0], a[0].shape[1]))

    def figures(self) -> dict[str, float]:
        """By name, over all linears.

        Returns:
            filled: share of the cells of the updates above ABOVE; rank: of the sum of all updates,
            the mean of the linears; capacity: this over the largest possible. From two pairs on
            also collision: share of cells, over all pairs of updates, in which both are; overlap:
            |A_i A_j^T|_F / (|A_i|_F |A_j|_F), the mean, 0 where inputs are orthogonal.
        """
        found = {
            "filled": self._filled / self._cells,
            "rank": sum(self._ranks) / len(self._ranks),
            "capacity": sum(self._ranks) / sum(self._limits),
        }
        if self._overlaps:
            found["collision"] = self._collided / self._cell_pairs
            found["overlap"] = sum(self._overlaps) / len(self._overlaps)
        return found


def cosine(a: Tensor, b: Tensor) -> float:
    """|A B^T|_F / (|A|_F |B|_F) of two matrices [r, I], in [0, 1]; 0 if one is zero."""
    a, b = a.double(), b.double()
    size = float(a.norm() * b.norm())
    return float((a @ b.T).norm()) / size if size else 0.0


def rank_of_sum(a: Sequence[Tensor], b: Sequence[Tensor]) -> int:
    """Numerical rank, in fp32, of sum_i B_i A_i, from the factors: never the matrix itself."""
    ups, downs = torch.cat(list(a)).double(), torch.cat(list(b), dim=1).double()
    small = torch.linalg.qr(downs).R @ torch.linalg.qr(ups.T).R.T
    values = torch.linalg.svdvals(small)
    smallest = values[0] * max(len(downs), ups.shape[1]) * torch.finfo(torch.float32).eps
    return int((values > smallest).sum())
