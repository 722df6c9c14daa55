"""Where a run is. Part of every checkpoint.

What was seen on the way is kept by those who watch it (engine/observe/); nothing else crosses a
step. The types say what a checkpoint may hold: engine/resume/saved.py checks it against them.
"""

from dataclasses import dataclass, fields
from typing import Annotated

from annotated_types import Ge, Le

Count = Annotated[int, Ge(0), Le(2**62)]


@dataclass
class Position:
    """The next step to take."""

    phase: Count = 0
    phase_step: Count = 0
    step: Count = 0
    """Optimizer steps done in the whole run."""

    started: bool = False
    """The evaluation before training is done."""

    data_shift: Count = 0
    """Steps' worth of this phase's data that rollbacks have left out."""

    def take(self, other: "Position") -> None:
        """Become equal to `other`."""
        for entry in fields(self):
            setattr(self, entry.name, getattr(other, entry.name))
