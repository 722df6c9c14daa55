"""The model before DeepSpeed has it, as methods see it: they import no model."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from sparsecl import seeding
from sparsecl.model.gpt import GPT
from sparsecl.sparse.linear import SparseLinear


class GptSide:
    """Implements methods.context.ModelSide for a GPT."""

    def __init__(self, model: GPT, seed: int) -> None:
        self._model, self._seed = model, seed

    def linears(self) -> Mapping[str, SparseLinear]:
        """By layer name (layers.3.mlp.up), in the order of the model."""
        modules = self._model.named_modules()
        return {name: part for name, part in modules if isinstance(part, SparseLinear)}

    def add(self, at: str, name: str, part: nn.Module) -> None:
        """Add a part to the linear `at`."""
        self.linears()[at].add_part(name, part)

    def generator(self, *names: str | int) -> np.random.Generator:
        """A named random stream of the run."""
        return seeding.stream(self._seed, *names)
