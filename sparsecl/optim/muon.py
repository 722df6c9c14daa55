"""Muon: the update of a linear's matrix is its momentum with all singular values near one.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ and its public code, in the
form of torch.optim.Muon; the size of a step after Liu et al. 2025, arXiv 2502.16982, so that
`optimizer.lr` and `optimizer.weight_decay` serve these matrices and AdamW's alike:

    m <- mu m + (1 - mu) g,   u = (1 - mu) g + mu m          (Nesterov)
    W <- (1 - lr decay) W - lr 0.2 sqrt(max(O, I)) NewtonSchulz(u)

All that is no linear's matrix (embedding, head, adapters, norms, biases) is AdamW's.

Newton-Schulz mixes all entries of a matrix, so it needs it whole. Tensor-parallel shares are joined
for it, one all-reduce of each matrix and step; data-parallel ranks do the same work each. ZeRO from
stage 1 on cuts matrices into flat slices: that is refused before any work. The update reaches
absent weights, and the mask guard's projection after the step (masking.py) takes it away again, as
it puts back held ones. Packed storage has no matrix and is refused.

Every parameter has AdamW's three states, of which `exp_avg` is m here and `exp_avg_sq` stays zero:
checkpoints have one form, at 4 bytes a weight that the method itself would not need.

Differs from torch.optim.Muon: nothing in one process; joined over tensor parallelism here.

O = outputs, I = inputs (global).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecl.optim.moving import joined, share

SPLIT = "split"
"""Key of the parameter groups whose matrices are Muon's: their dim that is split over tp."""

# Of the post: the slope at zero is as large as five steps allow, and all singular values of a
# matrix of norm 1 end within 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
RMS = 0.2  # of an AdamW update, as Liu et al. 2025 measured it


class Muon(torch.optim.Optimizer):
    """Muon for the groups that have SPLIT, AdamW for the others."""

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        *,
        lr: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        """Take parameter groups with their weight_decay.

        Args:
            momentum: mu, of the matrices.
            betas: of AdamW.
            eps: of AdamW.
        """
        given = [dict(group) for group in groups]
        super().__init__(given, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps})
        others = [group for group in self.param_groups if SPLIT not in group]
        # The same groups and the same state: DeepSpeed puts its copies into both, and a checkpoint
        # finds all of it here.
        self._adamw = torch.optim.AdamW(others, fused=True) if others else None
        if self._adamw is not None:
            self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore
        """Update all parameters that have a gradient. Collective over tp."""
        assert closure is None
        for group in self.param_groups:
            if SPLIT in group:
                for param in group["params"]:
                    if param.grad is not None:
                        self._step_matrix(param, param.grad, group)
        if self._adamw is not None:
            self._adamw.step()

    def _step_matrix(self, param: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state, lr, momentum = self.state[param], group["lr"], group["momentum"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient, 1.0 - momentum)
        update = joined(gradient.lerp(state["exp_avg"], momentum), group[SPLIT])
        scale = RMS * math.sqrt(max(update.shape))
        update = share(orthogonal(update), group[SPLIT])
        param.mul_(1.0 - lr * group["weight_decay"]).add_(update, alpha=-lr * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix [O, I] with singular values near one: five Newton-Schulz steps. Local.

    Returns:
        bf16 [O, I], as the public code computes it.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
