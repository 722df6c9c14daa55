"""Cannistraci-Hebb scores: which absent weights of a layer its own graph calls for.

A = mask [O, I]; rows u, z2 and columns z1, v. The graph is bipartite; the shortest paths beside an
absent weight (u, v) have length 3: u - z1 - z2 - v, with A[u, z1] = A[z2, z1] = A[z2, v] = 1. The
local community of (u, v) is all z1 and z2 on such paths. For z in it, di counts the links of z
inside the community, and de those that go neither into it nor to u or v.

    CH2: sum over paths of sqrt((1 + di_z1)(1 + di_z2)) / sqrt((1 + de_z1)(1 + de_z2))
    CH3: sum over paths of 1 / sqrt((1 + de_z1)(1 + de_z2))

Every z2 that is linked to both z1 and v is in the community once z1 is, so di_z1 = (A^T A)[z1, v]
depends on z1 and v alone, and likewise di_z2 = (A A^T)[z2, u]. The sum is then exact without a list
of paths: O(O nnz I) multiplications, a row u at a time.

The matrix form (L3n) stands in for it in large layers; formulas at `matrix_scores`.

Source: Zhang et al., ICLR 2024 (OpenReview iayEcORsGd), and NeurIPS 2025,
https://arxiv.org/abs/2501.19107, with their public code.
"""

from typing import Literal

import torch
from torch import Tensor

ScoreName = Literal["ch3_l3p", "ch2_l3p", "ch3_l3n", "ch2_l3n"]


def scores(mask: Tensor, name: ScoreName) -> Tensor:
    """Of every absent weight, fp32 [O, I]; 0 where it lives, or no path leads.

    Args:
        mask: bool [O, I], on the device that is to compute.
    """
    form = path_scores if name.endswith("l3p") else matrix_scores
    return form(mask.float(), ch2=name.startswith("ch2")).masked_fill_(mask, 0.0)


def matrix_scores(a: Tensor, *, ch2: bool) -> Tensor:
    """L3n: S1 A + (S2 A^T)^T, fp32 [O, I].

    With D = A A^T, B = [D != 0] and E = max((deg - D) B, 1) - 1, both ways round: S = (D + B) /
    (1 + E) for CH2 and B / (1 + E) for CH3. Takes 12 (O^2 + I^2) bytes for the moment, a side after
    the other, and 2 O I (O + I) multiplications.
    """
    return _side(a, ch2) @ a + (_side(a.t(), ch2) @ a.t()).t()


def _side(a: Tensor, ch2: bool) -> Tensor:
    shared = a @ a.t()
    linked = (shared != 0).float()
    outside = ((a.sum(dim=1) - shared) * linked).clamp_(min=1.0)  # 1 + E
    return (shared.add_(linked) if ch2 else linked).div_(outside)


def path_scores(a: Tensor, *, ch2: bool) -> Tensor:
    """L3p, fp32 [O, I]: the sums over paths, exact. Takes 4 (O^2 + I^2 + O I) bytes."""
    by_column = _weights(a.t(), ch2)  # [z1, v]
    by_row = _weights(a, ch2)  # [z2, u]
    found = torch.empty_like(a)
    for u, row in enumerate(a):
        linked = row.nonzero().view(-1)
        first = a[:, linked] @ by_column[linked]  # [z2, v], over z1
        found[u] = (a * first * by_row[:, u, None]).sum(dim=0)
    return found


def _weights(a: Tensor, ch2: bool) -> Tensor:
    """What a path's node counts in the community of each end on the far side, [Z, Z']: from di and
    de. Where nothing is shared there is no path, and the value does not matter."""
    inside = a @ a.t()
    outside = (a.sum(dim=1, keepdim=True) - inside).clamp_(min=1.0)  # 1 + de: one link is to u
    return ((1.0 + inside) / outside).sqrt_() if ch2 else outside.rsqrt_()
