"""What methods see of a forward pass, and the loss that its rows give."""

from dataclasses import dataclass

import torch

from sparsecl.methods.context import Batch


@dataclass(frozen=True)
class ForwardOutputs:
    """Implements methods.context.Outputs."""

    losses: torch.Tensor
    """fp32 [B, T], nats, with its graph."""


def weighted_mean(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean over rows of weight * mean loss of the row; losses [B, T]."""
    if batch.plain:
        return losses.mean()
    weight = torch.from_numpy(batch.weight).to(losses.device)
    return (losses.mean(dim=1) * weight).mean()
