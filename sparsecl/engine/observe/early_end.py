"""When a phase ends before its last step: its loss is good enough, or does not get better."""

from dataclasses import dataclass

from sparsecl.engine.observe.observer import Observer
from sparsecl.engine.position import Count
from sparsecl.engine.run_config import PhasesConfig


@dataclass
class Best:
    """Of the first phase, which `phases.patience` watches. Part of every checkpoint."""

    best_loss: float = 1e30
    num_bad: Count = 0
    """Evaluations in a row without improvement."""


class EarlyEnd(Observer[Best]):
    """Judges the losses of evaluations inside a phase."""

    def __init__(self, config: PhasesConfig) -> None:
        super().__init__(Best())
        self.config = config

    def judges(self, phase: int) -> bool:
        """False if the phase goes to its last step whatever its loss is."""
        return self._target(phase) is not None or self._is_watched(phase)

    def ends(self, phase: int, loss: float) -> bool:
        """True if the phase is good enough, or the first one does not get better.

        Args:
            loss: of the phase's own domain on the text inside phases, nats per token.
        """
        target = self._target(phase)
        if target is not None and loss <= target:
            return True
        if not self._is_watched(phase):
            return False
        kept = self.kept
        if loss < kept.best_loss - self.config.min_improvement:
            kept.best_loss, kept.num_bad = loss, 0
        else:
            kept.num_bad += 1
        return self.config.patience <= kept.num_bad

    def _is_watched(self, phase: int) -> bool:
        return phase == 0 and self.config.patience > 0

    def _target(self, phase: int) -> float | None:
        return dict(enumerate(self.config.until_loss or ())).get(phase)
