"""Progressive networks: each domain trains a column of its own, which hears the earlier ones.

Source: Rusu et al. 2016, https://arxiv.org/abs/1606.04671. All columns are there from the start;
phase k trains column k and holds the others, norms, embeddings and heads included, so a domain that
is named when it is tested gets the same bits from its column for good. Without a name (`matrix` in
results.json) the newest column answers. What a column hears, and how: model/columns.py.

Differs: hidden units of a transformer's feed-forward parts are heard by the same block of later
columns; attention hears nothing. The public code (aimagelab/mammoth) gives V a bias, here there is
none. Adam's step count goes on from column to column unless phases.optimizer_state is reset. A
domain that comes again trains a new column, and is tested with that one. One that has not been
trained is tested with the newest column.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from sparsecl.methods.base import Method
from sparsecl.methods.cl.config import ProgressiveConfig
from sparsecl.methods.context import MethodContext, SliceTensors
from sparsecl.methods.model_side import ColumnSwitch, ModelSide


class Progressive(Method):
    """Opens one column in each phase, and holds the others."""

    name = "progressive"
    config: ProgressiveConfig

    def __init__(self, config: ProgressiveConfig) -> None:
        super().__init__(config)
        self.phases: dict[str, int] = {}
        """Domain -> the last phase that has trained a column for it."""

        self._switch: ColumnSwitch | None = None

    def attach(self, model: ModelSide, num_phases: int) -> None:
        self._switch = model.columns()

    def phase_start(self, context: MethodContext) -> None:
        self.phases[context.domain] = context.progress.phase
        self.resumed(context)

    def began_anew(self, context: MethodContext) -> None:
        # Which phase trained which domain is in the config; the columns are among the weights.
        self.resumed(context)

    def resumed(self, context: MethodContext) -> None:
        """Open the phase's column, and hold all others."""
        self._open(context.progress.phase)
        for name, shape in context.shapes().items():
            held = column_of(name) != context.progress.phase
            where = torch.ones(shape, dtype=torch.bool) if held else None
            context.hold(name, where, owner=self.name)

    def scoring(self, context: MethodContext, domain: str) -> AbstractContextManager[None]:
        return self._scoring(context, domain)

    @contextmanager
    def _scoring(self, context: MethodContext, domain: str) -> Iterator[None]:
        newest = context.progress.phase
        self._open(self.phases.get(domain, newest))
        try:
            yield
        finally:
            self._open(newest)

    def _open(self, column: int) -> None:
        if self._switch is not None:
            self._switch.open = column

    def state_dict(self) -> tuple[Mapping[str, SliceTensors], Mapping[str, Any]]:
        return {}, {"phases": dict(self.phases)}

    def check_state(self, tensors: Collection[str], values: Mapping[str, Any]) -> None:
        super().check_state(tensors, values)
        for domain, phase in values["phases"].items():
            if type(phase) is not int or phase < 0:
                raise ValueError(f"phases: {domain!r:.40} has {phase!r:.40}, which is no phase")

    def load_state_dict(
        self, tensors: Mapping[str, SliceTensors], values: Mapping[str, Any]
    ) -> None:
        self.phases = dict(values["phases"])


def column_of(name: str) -> int:
    """The column of a parameter."""
    first, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if first == "columns" else 0
