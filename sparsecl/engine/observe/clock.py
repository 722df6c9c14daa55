"""The time of a run over all its starts, without what a restart or a rollback repeats."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from sparsecl.engine.observe.observer import Observer

Seconds = Annotated[float, Ge(0.0)]


@dataclass
class Times:
    """Part of every checkpoint."""

    train_seconds: Seconds = 0.0
    """Of steps, without evaluations and checkpoints."""

    seconds: Seconds = 0.0
    """Wall time."""


class Clock(Observer[Times]):
    """Tells the times of one run."""

    def __init__(self) -> None:
        super().__init__(Times())
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall time up to now."""
        return time.monotonic() - self._begun

    @property
    def train_seconds(self) -> float:
        """Of the steps up to now."""
        return self.kept.train_seconds

    def step_took(self, seconds: float) -> None:
        """A step is over."""
        self.kept.train_seconds += seconds

    def state_dict(self) -> dict[str, Any]:
        self.kept.seconds = self.seconds
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._begun = time.monotonic() - self.kept.seconds
