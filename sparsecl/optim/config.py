"""Options of the optimizer, its learning-rate schedule and the audit."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which elementwise optimizer steps the live weights, and how."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    """torch.optim's AdamW, Adam (coupled L2) or SGD; others through the DeepSpeed JSON's
    "optimizer" block."""

    lr: float = 3.0e-4
    """Peak learning rate."""

    betas: tuple[float, ...] = (0.9, 0.95)
    """Decay of the first and second moment (Adam, AdamW)."""

    eps: float = 1.0e-8
    """Added to the denominator (Adam, AdamW)."""

    momentum: float = 0.9
    """SGD only."""

    weight_decay: float = 0.1
    """Applied to matrices, not to norms."""

    clip: float = 1.0
    """Largest global gradient norm over live weights; 0 = no clipping."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {list(self.betas)}")
        if not self.eps > 0:
            raise ValueError(f"eps must be > 0, got {self.eps}")
        for name in ("weight_decay", "clip"):
            if not (0.0 <= getattr(self, name) < math.inf):
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over one phase, as a share of `optimizer.lr`."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up, down to `final` at the end of the phase."""

    warmup: float = 0.05
    """Share of the phase's steps over which the rate rises linearly from near 0; 4 steps at least,
    however short the phase. 0 = no warm-up."""

    rewarm: bool = True
    """Warm up in every phase; otherwise only in the first."""

    final: float = 0.1
    """Share of the peak that is left at the end of a phase (cosine, linear)."""

    later: float = 1.0
    """Multiplies the rate in every phase after the first: a model that is deployed and goes on
    learning gently."""

    def __post_init__(self) -> None:
        if not 0.0 < self.later <= 1.0:
            raise ValueError(f"later must be in (0, 1], got {self.later}")
        for name in ("warmup", "final"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A part of a phase with its own learning-rate curve."""

    name: str = "train"
    """For the log."""

    share: float = 1.0
    """Share of the phase's steps; the shares of a phase add up to 1."""

    lr_scale: float = 1.0
    """Multiplies the learning rate in this stage."""

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {self.share}")
        if not self.lr_scale > 0.0:
            raise ValueError(f"lr_scale must be > 0, got {self.lr_scale}")


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How often absent weights are checked to be absent."""

    every: int = 50
    """Optimizer steps between audits (the end of a phase is always audited); 0 = only there."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every must be >= 0 steps, got {self.every}")
