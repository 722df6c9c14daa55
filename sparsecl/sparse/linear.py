"""Linear layers on a topology, split over tensor-parallel ranks. No bias.

O = out_features, I = in_features, global; a rank holds [O / tp, I] or [O, I / tp] of the weight.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from sparsecl.sparse.masked import masked_linear
from sparsecl.sparse.parallel import reduce_from_tensor_parallel
from sparsecl.topology.layer import LayerShape, LayerTopology

Role = Literal["topology", "update"]


def mark_tensor_parallel(parameter: nn.Parameter, partition_dim: int) -> nn.Parameter:
    """Set Megatron's attributes, which DeepSpeed's gradient norm and our checkpoint read.

    Args:
        partition_dim: the dim that is split over tp, -1 for a parameter that every rank holds
            whole. A split parameter is marked at tp size 1 too, where it makes no difference.
    """
    attributes = {
        "tensor_model_parallel": partition_dim >= 0,
        "partition_dim": partition_dim,
        "partition_stride": 1,
    }
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter


class SparseLinear(nn.Module):
    """What both splits share: the local weight and the mask of its absent entries.

    The weight is left uninitialised; the model fills it from the global matrix.
    """

    partition_dim: ClassVar[int]
    role: Role
    weight: nn.Parameter
    dead: Tensor | None

    def __init__(
        self,
        shape: LayerShape,
        topology: LayerTopology | None,
        *,
        tp_rank: int = 0,
        tp_size: int = 1,
        role: Role = "topology",
    ) -> None:
        """Allocate the slice of one rank.

        Args:
            shape: the global matrix.
            topology: its live weights, or None for a dense layer.
            role: what becomes of absent weights; see TopologyConfig.role.
        """
        super().__init__()
        size_local = [shape.out_features, shape.in_features]
        assert size_local[self.partition_dim] % tp_size == 0, (shape, tp_size)
        size_local[self.partition_dim] //= tp_size
        self.shape, self.topology, self.role = shape, topology, role
        self.tp_rank, self.tp_size = tp_rank, tp_size
        self.weight = mark_tensor_parallel(
            nn.Parameter(torch.empty(size_local)), self.partition_dim
        )
        dead = None
        if topology is not None:
            assert (topology.out_features, topology.in_features) == (
                shape.out_features,
                shape.in_features,
            ), f"{shape.name}: topology of another shape"
            dead = ~torch.from_numpy(topology.shard(self.partition_dim, tp_rank, tp_size))
        # Not persistent: a mask is rebuilt from (seed, layer name) and checked by digest.
        self.register_buffer("dead", dead, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I_local] -> [..., O_local]."""
        return masked_linear(x, self.weight, self.dead)

    def extra_repr(self) -> str:
        """Global size, density and split, for print(model)."""
        density = 1.0 if self.topology is None else self.topology.density
        return (
            f"{self.shape.in_features} -> {self.shape.out_features}, density {density:g}, "
            f"rank {self.tp_rank} of {self.tp_size} on dim {self.partition_dim}"
        )


class ColumnParallelSparseLinear(SparseLinear):
    """Splits the outputs: [..., I] -> [..., O / tp].

    The caller passes the input through `copy_to_tensor_parallel` once, for all such layers on it.
    """

    partition_dim = 0


class RowParallelSparseLinear(SparseLinear):
    """Splits the inputs: [..., I / tp] -> [..., O], summed over tp. Collective over tp."""

    partition_dim = 1

    def forward(self, x: Tensor) -> Tensor:
        """[..., I_local] -> [..., O], the same on every rank of the tp group."""
        return reduce_from_tensor_parallel(super().forward(x))
