"""Weights of anywhere as a checkpoint that a run can start from.

Such a checkpoint is of step 0 and holds the weights only: no moments, no position in the data. Its
manifest says so, `state["weights_only"]` is true, so that nobody goes on from it as from one of a
run. W = width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl.checkpoint.canonical import MASTER, Advance
from sparsecl.checkpoint.entries import entries
from sparsecl.checkpoint.foreign import Weights
from sparsecl.checkpoint.manifest import ParameterEntry
from sparsecl.checkpoint.rewrite import reshard
from sparsecl.errors import DataError, UserError
from sparsecl.model.config import ModelShape, padded_vocabulary
from sparsecl.model.shapes import VOCABULARY, layer_shapes
from sparsecl.topology.layer import LayerTopology

WEIGHTS_ONLY = "weights_only"


@dataclass(frozen=True)
class About:
    """The part of a manifest that does not depend on the layout."""

    step: int
    parameters: dict[str, ParameterEntry]
    state: dict[str, Any]


class WeightsSource:
    """Weights as canonical tensors: `sparsecl.checkpoint.canonical.TensorSource`."""

    def __init__(
        self,
        weights: Weights,
        topologies: Mapping[str, LayerTopology],
        state: Mapping[str, Any],
        *,
        may_drop: bool,
    ) -> None:
        """Describe what will be read.

        Args:
            topologies: by layer name; empty for a dense model.
            state: JSON-safe, of the manifest.
            may_drop: weights outside the topology are set to zero; otherwise they are an error.
        """
        rows = padded_vocabulary(weights.vocab_size, 1)
        self.topologies = {f"{name}.weight": found for name, found in topologies.items()}
        self.manifest = About(
            step=0,
            parameters=entries(weights.shape, rows, frozenset(self.topologies)),
            state={**state, WEIGHTS_ONLY: True, "vocab_size": weights.vocab_size},
        )
        self._weights, self._may_drop = weights, may_drop

    def states(self) -> list[str]:
        """Masters only."""
        return [MASTER]

    def arrays(self) -> Mapping[str, torch.Tensor]:
        """No method has run."""
        return {}

    def has(self, state: str, name: str) -> bool:
        """True if `state` of parameter `name` is there."""
        return state == MASTER and name in self.manifest.parameters

    def read(self, state: str, name: str) -> torch.Tensor:
        """A fresh fp32 tensor of the parameter's global shape; absent weights are 0.

        Raises:
            DataError: if a weight is not finite, or not zero where it must be absent.
        """
        assert self.has(state, name), (state, name)
        value = self._weights.read(name).float().clone()
        if not torch.isfinite(value).all():
            raise DataError(f"{name}: holds weights that are not finite")
        if name in VOCABULARY:
            padded = torch.zeros(self.manifest.parameters[name].shape)
            padded[: len(value)] = value
            return padded
        if name in self.topologies:
            dead = ~torch.from_numpy(self.topologies[name].mask())
            outside = int(torch.count_nonzero(value[dead]))
            if outside and not self._may_drop:
                raise DataError(f"{name}: {outside} weights outside its topology are not zero")
            value[dead] = 0.0
        return value


def write_start(source: WeightsSource, run: Path, advance: Advance | None = None) -> Path:
    """Write RUN/checkpoints/step_0; returns it."""
    folder = run / "checkpoints" / "step_0"
    reshard(source, folder, tp_size=1, advance=advance)
    return folder


def largest_weights(
    shape: ModelShape, read: Callable[[str], torch.Tensor], density: float
) -> dict[str, LayerTopology]:
    """The topology of the round(density * cells) largest |weights| of each matrix, by layer name.

    Of equal weights those with the lower flat index live.

    Raises:
        UserError: if a matrix would have no live weight.
    """
    found = {}
    for layer in layer_shapes(shape):
        count = round(density * layer.num_cells)
        if not count:
            raise UserError(
                f"--density {density:g}: {layer.name} would have no live weight. "
                f"Use {1 / layer.num_cells:g} or more."
            )
        size = read(f"{layer.name}.weight").abs().numpy().reshape(-1)
        found[layer.name] = LayerTopology(
            layer.name, layer.out_features, layer.in_features, _largest(size, count)
        )
    return found


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ascending indices of the `count` largest values, the lower index on a tie."""
    edge = np.partition(values, values.size - count)[values.size - count]
    above = np.flatnonzero(values > edge)
    equal = np.flatnonzero(values == edge)[: count - above.size]
    return np.sort(np.concatenate([above, equal])).astype(np.int64)
