"""Where a run is. Part of every checkpoint; nothing else crosses a step.

The types say what a checkpoint may hold: engine/saved.py checks it against them.
"""

from dataclasses import dataclass, field, fields
from typing import Annotated

from annotated_types import Ge, Le, MaxLen

from sparsecl.engine.plasticity import PhaseSums

Count = Annotated[int, Ge(0), Le(2**62)]
Seconds = Annotated[float, Ge(0.0)]

WINDOW = 50
"""Logged losses that the usual loss is the median of; see engine/health.py."""


@dataclass
class Position:
    """The next step to take, and what was seen on the way to it."""

    phase: Count = 0
    phase_step: Count = 0
    step: Count = 0
    """Optimizer steps done in the whole run."""

    started: bool = False
    """The evaluation before training is done."""

    best_loss: float = 1e30
    num_bad: Count = 0
    """Evaluations of the first phase without improvement, for phases.patience."""

    train_seconds: Seconds = 0.0
    seconds: Seconds = 0.0
    """Wall time of the run up to its last checkpoint, over all restarts."""

    plasticity: PhaseSums = field(default_factory=PhaseSums)
    bad_steps: Count = 0
    """Steps in a row, up to now, whose gradient was not finite."""

    recent_losses: Annotated[list[float], MaxLen(WINDOW)] = field(default_factory=list)
    """The last logged training losses of this phase, oldest first."""

    data_shift: Count = 0
    """Steps' worth of this phase's data that rollbacks have left out."""

    rollbacks: Count = 0
    """Returns to an earlier checkpoint in the whole run."""

    def __post_init__(self) -> None:
        if isinstance(self.plasticity, dict):  # as a checkpoint keeps it
            self.plasticity = PhaseSums(**self.plasticity)

    def take(self, other: "Position") -> None:
        """Become equal to `other`."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(other, entry.name))
