"""A guard for transformers' Trainer, which makes its optimizer only when training begins."""

from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainerCallback

from sparsecl.errors import UserError
from sparsecl.library.audit import Counts, Guard
from sparsecl.library.masks import checked_layers


class TrainerGuard(Guard):
    """Guards model and optimizer of a Trainer as soon as both exist."""

    def __init__(self, trainer: Trainer, make: Callable[..., Guard]) -> None:
        """Wait for the Trainer to begin; `make` is mask_guard, which knows this class."""
        model: Any = trainer.model
        checked_layers(model)  # a mistake is told now and not when training begins
        self._trainer, self._make, self._guard = trainer, make, None
        self._callback = _Begin(self)
        trainer.add_callback(self._callback)

    def begin(self, optimizer: Any) -> None:
        """Guard what the Trainer has just made; it may begin again, with another batch size."""
        if self._guard is not None:
            self._guard.close()
        wrapped: Any = self._trainer.model_wrapped
        is_engine = hasattr(wrapped, "zero_optimization_stage")
        self._guard = self._make(wrapped) if is_engine else self._make(wrapped, optimizer)

    def close(self) -> None:
        self._trainer.remove_callback(self._callback)
        if self._guard is not None:
            self._guard.close()

    def counts(self) -> Counts:
        if self._guard is None:
            raise UserError("mask_guard: the Trainer has not begun to train, there is no optimizer")
        return self._guard.counts()


class _Begin(TrainerCallback):
    def __init__(self, guard: TrainerGuard) -> None:
        self.guard = guard

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.guard.begin(kwargs["optimizer"])
