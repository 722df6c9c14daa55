"""The model before DeepSpeed has it, as methods see it: they import no model."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sparsecl import seeding
from sparsecl.model.columns import Columns
from sparsecl.model.gpt import GPT, Block, Mlp
from sparsecl.model.init import fresh_rows
from sparsecl.sparse.linear import SparseLinear
from sparsecl.sparse.units import UnitGroup, unit_groups


class GptSide:
    """Implements methods.context.ModelSide for a GPT."""

    def __init__(self, model: GPT, seed: int) -> None:
        self._model, self._seed = model, seed

    def linears(self) -> Mapping[str, SparseLinear]:
        """By layer name (layers.3.mlp.up), in the order of the model."""
        modules = self._model.named_modules()
        return {name: part for name, part in modules if isinstance(part, SparseLinear)}

    def feed_forwards(self) -> Mapping[str, int]:
        """Width of what goes into each feed-forward part, by its name (layers.3.mlp)."""
        return {f"layers.{i}.mlp": self._model.shape.width for i in range(len(self._model.layers))}

    def columns(self) -> Columns | None:
        """Which column is open; None where there is one only."""
        return self._model.columns

    def units(self, *, gated: bool = False) -> Mapping[str, UnitGroup]:
        """The hidden units of each feed-forward part, by its name (layers.3.mlp)."""
        linears = self.linears()

        def fresh(
            name: str, units: NDArray[np.int64], rng: np.random.Generator
        ) -> NDArray[np.float32]:
            if name.endswith(".bias"):
                return np.zeros(len(units), dtype=np.float32)
            return fresh_rows(linears[name.removesuffix(".weight")], units, rng)

        for block in self._model.layers:
            assert isinstance(block, Block)
            if block.mlp.units is None:
                mlp = block.mlp
                readers = [mlp.up] if mlp.gate is None else [mlp.gate, mlp.up]
                mlp.units = UnitGroup(
                    mlp.up.shape.out_features,
                    incoming=[name for linear in readers for name in _names(linear)],
                    outgoing=[f"{mlp.down.shape.name}.weight"],
                    biases=list(_names(mlp.down))[1:],
                    fresh=fresh,
                )
            assert block.mlp.units is not None
            if gated:
                block.mlp.units.add_gate()
        return unit_groups(self._model)

    def add(self, at: str, name: str, part: nn.Module) -> None:
        """Add a part to the linear or the feed-forward part `at`."""
        found = self._model.get_submodule(at)
        assert isinstance(found, SparseLinear | Mlp), at
        found.add_part(name, part)

    def generator(self, *names: str | int) -> np.random.Generator:
        """A named random stream of the run."""
        return seeding.stream(self._seed, *names)


def _names(linear: SparseLinear) -> Iterator[str]:
    """Of its parameters: the matrix, and the bias if there is one."""
    yield f"{linear.shape.name}.weight"
    if linear.bias is not None:
        yield f"{linear.shape.name}.bias"
