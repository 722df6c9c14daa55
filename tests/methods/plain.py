"""Methods without an engine: a torch module under a torch optimizer, on the context of a run.

Weights and gradients go through the same WeightContext; data and progress are what a test says.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsecl import seeding
from sparsecl.methods.base import Method
from sparsecl.methods.context import Batch, Progress, SliceTensors
from sparsecl.methods.facts import RunFacts
from sparsecl.methods.several import Methods
from sparsecl.methods.weights import WeightContext
from sparsecl.optim.masking import MaskGuard
from tests.optim.by_hand import slices_of

START = Progress(
    step=0,
    total_steps=10,
    phase=0,
    phase_step=0,
    phase_steps=10,
    stage="train",
    stage_step=0,
    stage_steps=10,
    data_step=0,
    micro_step=0,
    num_micro_steps=1,
)


FACTS = RunFacts(
    dense=False,
    role="topology",
    storage="masked",
    joint=False,
    num_phases=3,
    micro=4,
    optimizer="adamw",
    layers=(),
    others=(),
)
"""A sparse run of three phases; tests replace what they are about."""


def batch(rows: Any, phase: int = 0, first: int = 0) -> Batch:
    """Rows that are sequences `first`, `first + 1`, .. of a phase."""
    numbers = np.arange(first, first + len(rows))
    origin = np.stack([np.full_like(numbers, phase), numbers], axis=1)
    return Batch(rows, np.ones(len(rows), np.float32), origin)


class PlainContext(WeightContext):
    """A context whose answers about the run are fields."""

    domain = "a"
    batch_sequences = 4
    num_chunks = 6

    def __init__(
        self,
        weights: nn.Module | nn.Parameter,
        optimizer: torch.optim.Optimizer,
        methods: Iterable[Method] = (),
        *,
        dead: Mapping[str, torch.Tensor] | None = None,
        seed: int = 7,
    ) -> None:
        slices = slices_of(weights, optimizer)
        module = weights if isinstance(weights, nn.Module) else nn.Module()
        super().__init__(module, slices, MaskGuard(slices, dead or {}), Methods(methods))
        self.progress, self.seed = START, seed
        self.read: Callable[[int, np.ndarray], np.ndarray] = lambda phase, numbers: np.stack(
            [100 * phase + numbers] * 2, axis=1
        )
        self.means: SliceTensors = {}
        """What `mean_gradients` answers."""

    def at(self, step: int, **changes: Any) -> "PlainContext":
        """Go to a step; data_step and phase_step are the step unless they are given."""
        counts = {"phase_step": step, "stage_step": step, "data_step": step, **changes}
        self.progress = replace(self.progress, step=step, **counts)
        return self

    def rows(self, phase: int, indices: np.ndarray) -> np.ndarray:
        return self.read(phase, indices)

    def chunks(self, phase: int, indices: np.ndarray) -> np.ndarray:
        return indices % self.num_chunks

    def generator(self, *names: str | int) -> np.random.Generator:
        return seeding.stream(self.seed, *names)

    def mean_gradients(self, rows: np.ndarray, *, each: Any = None, of: Any = None) -> SliceTensors:
        del rows, each, of
        return self.means

    def step(self, optimizer: torch.optim.Optimizer, *, applied: bool = True) -> None:
        """The hooks around an update on the gradients that are there, and the update."""
        self.after_backward()
        skipped = applied and self.skips
        if applied and not skipped:
            optimizer.step()
        progress = self.progress
        self.at(
            progress.step + 1,
            phase_step=progress.phase_step + 1,
            stage_step=progress.stage_step + 1,
            data_step=progress.data_step + 1,
        )
        self.after_step(applied=applied and not skipped, skipped=skipped)
