"""Options of the comparison methods; every one is off unless its block is there.

Kept apart from the methods so that a config is read and checked without importing torch.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EwcConfig:
    """How strongly and in which form earlier weights are held."""

    strength: float = 1.0e4
    """lambda; depends on the problem, sweep 1e0..1e6. 0 is plain training, bit for bit."""

    variant: Literal["separate", "online"] = "separate"
    """One anchor per domain, or a decaying Fisher with the latest anchor."""

    gamma: float = 0.9
    """Decay of the old Fisher (online only)."""

    sequences: int = 256
    """Training sequences of a phase over which its Fisher is averaged."""

    def __post_init__(self) -> None:
        if not self.strength >= 0.0:
            raise ValueError(f"strength must be >= 0, got {self.strength}")
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")
        if self.sequences < 1:
            raise ValueError(f"sequences must be >= 1, got {self.sequences}")


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """How often and how much of each layer is rewired."""

    every: int = 100
    """Optimizer steps between rewires, in all phases."""

    drop_fraction: float = 0.3
    """zeta: share of the positive and of the negative weights of a layer that is replaced."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be >= 1 step, got {self.every}")
        if not 0.0 <= self.drop_fraction < 1.0:
            raise ValueError(f"drop_fraction must be in [0, 1), got {self.drop_fraction}")


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """How many earlier sequences are remembered, and how many are trained again."""

    sequences: int = 1024
    """Capacity of the memory, in training sequences of model.context tokens, over all ranks."""

    share: float = 0.25
    """Replayed / new sequences of a batch. share * batch.micro must be a whole number >= 1."""

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise ValueError(f"sequences must be >= 1, got {self.sequences}")
        if not 0.0 < self.share < math.inf:
            raise ValueError(f"share must be > 0, got {self.share}")

    def num_replayed(self, micro: int) -> int:
        """Replayed sequences beside `micro` new ones of a micro-batch, >= 1.

        Raises:
            ValueError: if share * micro is not whole, with the nearest shares that are.
        """
        wanted = self.share * micro
        num = round(wanted)
        # The six digits of the message below are enough for a share like 1/3.
        if num >= 1 and abs(wanted - num) <= 1e-5 * num:
            return num
        below, above = math.floor(wanted), math.ceil(wanted)
        fitting = " or ".join(f"{near / micro:.6g}" for near in (below, above) if near >= 1)
        raise ValueError(
            f"share={self.share:g} of the {micro} sequences of a micro-batch is {wanted:.6g}, not "
            f"a whole number >= 1. Use share {fitting}, or another batch.micro."
        )


@dataclass(frozen=True, kw_only=True)
class MethodsConfig:
    """Mechanisms beside the topology. The core experiment uses none."""

    ewc: EwcConfig | None = None
    """Elastic weight consolidation."""

    set: SetConfig | None = None
    """Sparse evolutionary training: the topology moves."""

    replay: ReplayConfig | None = None
    """Experience replay: earlier sequences are trained again beside the new ones."""
