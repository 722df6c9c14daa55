"""The live weights of a model's masked matrices, whatever their storage.

N = live weights of one matrix, in row-major order. "The masked matrices" are the six matrices of
each block; in a dense model all their weights live, so that it can be compared with a sparse one.
One process without tensor parallelism: a matrix is whole.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sparsecl.sparse.linear import SparseLinear

LiveTensors = Mapping[str, Tensor]
"""Layer name -> fp32 [N]: a value for each live weight."""


class LiveWeights:
    """Reads and writes the live weights; absent and frozen ones are never touched."""

    def __init__(self, model: nn.Module) -> None:
        """Find the layers. A rewire makes this stale."""
        self.layers: dict[str, SparseLinear] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, SparseLinear)
        }
        assert all(layer.tp_size == 1 for layer in self.layers.values())
        self.counts = {name: _num_live(layer) for name, layer in self.layers.items()}

    @property
    def num_live(self) -> int:
        """Live weights of all matrices."""
        return sum(self.counts.values())

    def read(self) -> dict[str, Tensor]:
        """A copy of all live weights."""
        return {
            name: select(layer, layer.weight.detach()).clone()
            for name, layer in self.layers.items()
        }

    @torch.no_grad()
    def write(self, values: LiveTensors) -> None:
        """Set all live weights."""
        for name, layer in self.layers.items():
            if layer.dead is None:
                layer.weight.view(-1).copy_(values[name])
            else:
                layer.weight.masked_scatter_(~layer.dead, values[name])
            layer.forget()

    @contextlib.contextmanager
    def restored(self) -> Iterator[dict[str, Tensor]]:
        """Give the live weights, and put them back at the end, bit for bit."""
        before = self.read()
        try:
            yield before
        finally:
            self.write(before)


def select(layer: SparseLinear, value: Tensor) -> Tensor:
    """The live entries [N] of a tensor that has the form of the layer's parameter."""
    return value.reshape(-1) if layer.dead is None else value[~layer.dead]


def norm(values: LiveTensors) -> float:
    """Euclidean norm over all matrices, summed in float64."""
    return dot(values, values) ** 0.5


def dot(a: LiveTensors, b: LiveTensors) -> float:
    """Inner product over all tensors of equal names, summed in float64."""
    parts = ((a[name].double().reshape(-1), b[name].double().reshape(-1)) for name in a)
    return float(sum(torch.dot(one, other).item() for one, other in parts))


def _num_live(layer: SparseLinear) -> int:
    return layer.weight.numel() if layer.topology is None else layer.topology.num_live
