"""Slices of networks side by side: a row for each network in place of a flat vector.

What works element by element on a slice works on these; a number for each network is [N, 1].
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from sparsecl.optim.deepspeed.wrappers import Names, Plain
from sparsecl.optim.slice import Slice
from sparsecl.optim.slices import Slices


@dataclass(frozen=True, eq=False)
class NetworkSlice(Slice):
    """A parameter of all networks: [N, numel of one], or [numel] where there is one apart."""

    networks: tuple[int, ...]

    @property
    def weight(self) -> torch.Tensor:
        return self.cut(self.param)

    @property
    def matrix_shape(self) -> torch.Size:
        """Of one network."""
        return self.param.shape[len(self.networks) :]

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().view(*self.networks, -1)

    def part(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().reshape(*self.networks, -1)


class _Networks(Plain):
    """Parameters are their own masters."""

    def __init__(self, optimizer: torch.optim.Optimizer, networks: tuple[int, ...]) -> None:
        super().__init__(optimizer)
        self.networks = networks

    def slices(self, names: Names) -> Iterator[Slice]:
        for param, name in names.items():
            yield NetworkSlice(name, param, param, 0, 0, param.numel(), self.networks)

    def grad(self, item: Slice) -> torch.Tensor | None:
        gradient = item.param.grad
        return None if gradient is None else item.cut(gradient)


class NetworkSlices(Slices):
    """All parameters of a module under an optimizer of torch."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, networks: tuple[int, ...]
    ) -> None:
        self.wrapper, self.optimizer = _Networks(optimizer, networks), optimizer
        self.stage, self.partitioned = 0, False
        names = {param: name for name, param in module.named_parameters()}
        self._params = {name: param for param, name in names.items()}
        self._slices = list(self.wrapper.slices(names))
        self._by_name = {item.name: item for item in self._slices}

    def find(self, name: str) -> Slice | None:
        return self._by_name.get(name)
