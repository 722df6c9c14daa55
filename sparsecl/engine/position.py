"""Where a run is. Part of every checkpoint; nothing else crosses a step."""

from dataclasses import dataclass, field, fields

from sparsecl.engine.plasticity import PhaseSums


@dataclass
class Position:
    """The next step to take, and what was seen on the way to it."""

    phase: int = 0
    phase_step: int = 0
    step: int = 0
    """Optimizer steps done in the whole run."""

    started: bool = False
    """The evaluation before training is done."""

    best_loss: float = 1e30
    num_bad: int = 0
    """Evaluations of the first phase without improvement, for phases.patience."""

    train_seconds: float = 0.0
    seconds: float = 0.0
    """Wall time of the run up to its last checkpoint, over all restarts."""

    plasticity: PhaseSums = field(default_factory=PhaseSums)
    bad_steps: int = 0
    """Steps in a row, up to now, whose gradient was not finite."""

    recent_losses: list[float] = field(default_factory=list)
    """The last logged training losses of this phase, oldest first."""

    data_shift: int = 0
    """Steps' worth of this phase's data that rollbacks have left out."""

    rollbacks: int = 0
    """Returns to an earlier checkpoint in the whole run."""

    def __post_init__(self) -> None:
        if isinstance(self.plasticity, dict):  # as a checkpoint keeps it
            self.plasticity = PhaseSums(**self.plasticity)

    def take(self, other: "Position") -> None:
        """Become equal to `other`."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(other, entry.name))
