"""What a step gives, for those who record and judge it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepResult:
    """What came of one step."""

    losses: list[torch.Tensor]
    """Mean loss of each micro-batch of this rank, nats per token."""

    grad_norm: float | None
    """Of the whole model before clipping; None if it was not asked for."""

    applied: bool
    """False: nothing changed. The same on all ranks."""

    bad_gradients: list[str]
    """Parameters of this rank with gradients that are not finite; only if they were asked for."""

    skipped: bool = False
    """Nothing changed because a method wanted no update; every gradient was finite."""

    @property
    def discarded(self) -> bool:
        """Nothing changed because a gradient was not finite."""
        return not self.applied and not self.skipped

    @property
    def loss(self) -> torch.Tensor:
        """Mean loss of this rank's tokens."""
        return torch.stack(self.losses).mean()
