"""One rank's part of one parameter: weight, master, and places in tensors laid out like them."""

from dataclasses import dataclass
from typing import Any

import torch

from sparsecl.optim.deepspeed.parameters import is_cut, local_shape, shard


@dataclass(frozen=True, eq=False)
class Slice:
    """One rank's part of one parameter, a range of the flattened tp-local parameter."""

    name: str
    """Parameter name in the model."""

    param: Any
    """The torch parameter that the forward pass uses, with what DeepSpeed hangs on it."""

    stepped: torch.Tensor
    """The tensor that the optimizer steps; it may hold other parameters' slices too."""

    stepped_start: int
    """Where this slice begins in `stepped`, flattened."""

    start: int
    """Where this slice begins in the tp-local parameter, flattened."""

    numel: int
    """Number of elements of this slice."""

    @property
    def master(self) -> torch.Tensor:
        """View [numel] of the values that the optimizer steps (fp32)."""
        return self.cut(self.stepped)

    @property
    def weight(self) -> torch.Tensor:
        """View [numel] of the values that the forward pass uses, in the run's precision."""
        if is_cut(self.param):
            return shard(self.param).detach().view(-1)[: self.numel]
        return self.param.detach().view(-1)[self.start : self.start + self.numel]

    @property
    def local_shape(self) -> torch.Size:
        """Shape of the whole tp-local parameter."""
        return local_shape(self.param)

    @property
    def matrix_shape(self) -> torch.Size:
        """The same, of the matrix where it is kept as the vector of its live values."""
        return getattr(self.param, "dense_shape", self.local_shape)

    def cut(self, tensor: torch.Tensor) -> torch.Tensor:
        """This slice's view [numel] of a tensor laid out like `stepped`."""
        flat = tensor.detach().view(-1)
        return flat[self.stepped_start : self.stepped_start + self.numel]

    def part(self, tensor: torch.Tensor) -> torch.Tensor:
        """This slice's view [numel] of a tensor laid out like the tp-local parameter."""
        return tensor.detach().reshape(-1)[self.start : self.start + self.numel]
