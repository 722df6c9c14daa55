"""Options of the optimizer, its learning-rate schedule and the audit."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.bounds import check_bounds


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer steps the live weights, and how."""

    kind: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """torch.optim's AdamW, Adam (coupled L2) or SGD; or Muon for the matrices of the linears with
    AdamW for the rest (ZeRO stage 0 and masked storage only); others through the DeepSpeed JSON's
    "optimizer" block."""

    lr: Annotated[float, Gt(0)] = 3.0e-4
    """Peak learning rate."""

    betas: tuple[float, ...] = (0.9, 0.95)
    """Decay of the first and second moment (Adam, AdamW, and AdamW beside Muon)."""

    eps: Annotated[float, Gt(0)] = 1.0e-8
    """Added to the denominator (Adam, AdamW, and AdamW beside Muon)."""

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """SGD and Muon; the usual value of Muon is 0.95."""

    weight_decay: Annotated[float, Ge(0)] = 0.1
    """Applied to matrices, not to norms."""

    clip: Annotated[float, Ge(0)] = 1.0
    """Largest global gradient norm over live weights; 0 = no clipping."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {list(self.betas)}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over one phase, as a share of `optimizer.lr`."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up, down to `final` at the end of the phase."""

    warmup: Annotated[float, Ge(0), Le(1)] = 0.05
    """Share of the phase's steps over which the rate rises linearly from near 0; 4 steps at least,
    however short the phase. 0 = no warm-up."""

    rewarm: bool = True
    """Warm up in every phase; otherwise only in the first."""

    final: Annotated[float, Ge(0), Le(1)] = 0.1
    """Share of the peak that is left at the end of a phase (cosine, linear)."""

    later: Annotated[float, Gt(0), Le(1)] = 1.0
    """Multiplies the rate in every phase after the first: a model that is deployed and goes on
    learning gently."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A part of a phase with its own learning-rate curve."""

    name: str = "train"
    """For the log."""

    share: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the phase's steps; the shares of a phase add up to 1."""

    lr_scale: Annotated[float, Gt(0)] = 1.0
    """Multiplies the learning rate in this stage."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How often absent weights are checked to be absent."""

    every: Annotated[int, Ge(0)] = 50
    """Optimizer steps between audits (the end of a phase is always audited); 0 = only there."""

    def __post_init__(self) -> None:
        check_bounds(self)
