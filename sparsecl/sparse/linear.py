"""Linear layers on a topology, split over tensor-parallel ranks.

O = out_features, I = in_features, global; a rank holds [O / tp, I] or [O, I / tp] of the matrix,
with N live weights in it. What the parameter is (the matrix, or the live values alone) and how it
multiplies are two choices that do not know of each other; see product.py. A bias, where there is
one, is never masked.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sparsecl.errors import UserError
from sparsecl.sparse.backends import DEFAULT, LinearOptions, make_backend
from sparsecl.sparse.dense import DenseBackend
from sparsecl.sparse.index import LiveIndex
from sparsecl.sparse.masked import masked_linear
from sparsecl.sparse.parallel import leave_tensor_parallel, summed_gradient
from sparsecl.sparse.product import Backend, arrange, sparse_product
from sparsecl.sparse.tap import DenseTap
from sparsecl.topology.layer import LayerShape, LayerTopology


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
    """What both splits share: the local weight, where it is live, and how it multiplies.

    The weight is left uninitialised; the model fills it from the global matrix.
    """

    partition_dim: ClassVar[int]
    weight: nn.Parameter
    """[O, I] (local), or the live values [N] in row-major order (packed storage)."""

    bias: nn.Parameter | None
    """Column-parallel [O] (local); row-parallel [O], whole on every rank."""

    dead: Tensor | None
    """bool [O, I] (local), True = absent; masked storage only."""

    index: LiveIndex | None
    """Where the live values lie; None where nothing needs to know."""

    backend: Backend | None
    """How it multiplies; None = as a dense matrix whose absent entries are zero."""

    tap: DenseTap | None
    """Takes the gradient of the whole matrix in the backward pass of what goes forward now."""

    def __init__(
        self,
        shape: LayerShape,
        topology: LayerTopology | None,
        *,
        tp_rank: int = 0,
        tp_size: int = 1,
        options: LinearOptions = DEFAULT,
    ) -> None:
        """Allocate the slice of one rank.

        Args:
            shape: the global matrix.
            topology: its live weights, or None for a dense layer, which has no other options.

        Raises:
            UserError: if the backend does not fit the topology, or a packed slice would be empty.
        """
        super().__init__()
        size_local = [shape.out_features, shape.in_features]
        assert size_local[self.partition_dim] % tp_size == 0, (shape, tp_size)
        size_local[self.partition_dim] //= tp_size
        self.local_shape = torch.Size(size_local)
        self.shape, self.topology, self.options = shape, topology, options
        self.tp_rank, self.tp_size = tp_rank, tp_size
        # How the matrix was drawn (model/init.py), for whoever draws some rows of it again.
        self.init_std, self.init_corrected = 0.0, False
        self.index, self.backend, self.tap = None, None, None
        self.parts: nn.ModuleDict | None = None
        self.number: Tensor | None = None  # int64 [], of operators.py
        # Attributes, so that a compiled model can leave them out of its graphs (model/compiled.py).
        self.product, self.rearrange = live_product, arrange
        self.exchange, self.share = leave_tensor_parallel, summed_gradient
        # Not persistent: a mask is rebuilt from (seed, layer name), or read from the checkpoint.
        self.register_buffer("dead", None, persistent=False)
        if topology is not None:
            self.set_topology(topology)
        weight = nn.Parameter(torch.empty(self.storage_shape))
        self.weight = mark_tensor_parallel(weight, self.partition_dim)
        # For an optimizer that treats matrices of linears in another way (optim/build.py).
        setattr(self.weight, "of_linear", True)  # noqa: B010
        if self.packed:
            setattr(self.weight, "dense_shape", self.local_shape)  # noqa: B010
        self.register_parameter("bias", None)
        if shape.bias:
            split = 0 if self.partition_dim == 0 else -1
            self.bias = mark_tensor_parallel(nn.Parameter(torch.empty(size_local[0])), split)

    @property
    def packed(self) -> bool:
        """The parameter is the vector of live values."""
        return self.topology is not None and self.options.storage == "packed"

    @property
    def storage_shape(self) -> torch.Size:
        """Shape of the local parameter."""
        if not self.packed:
            return self.local_shape
        assert self.index is not None
        return torch.Size([self.index.num_live])

    @property
    def index_bytes(self) -> int:
        """Bytes of mask and indices on this rank; ZeRO does not shard them."""
        backend = 0 if self.backend is None else self.backend.index_bytes
        index = 0 if self.index is None else self.index.index_bytes
        return backend + index + (0 if self.dead is None else self.dead.numel())

    def set_topology(self, topology: LayerTopology, live: Tensor | None = None) -> None:
        """Prepare the products for a live set; the caller moves the values (rewire.py). In packed
        storage a later one must have as many live weights in this slice.

        Args:
            topology: of the global matrix.
            live: its mask where that is at hand, bool [O, I] of the global matrix, on any device.

        Raises:
            UserError: see `__init__`.
        """
        assert (topology.out_features, topology.in_features) == (
            self.shape.out_features,
            self.shape.in_features,
        ), f"{self.shape.name}: topology of another shape"
        self.topology = topology
        if live is None:
            live = torch.from_numpy(topology.mask())
        local = live.chunk(self.tp_size, self.partition_dim)[self.tp_rank]
        device = self.weight.device if hasattr(self, "weight") else torch.device("cpu")
        if not self.packed:
            # In place: the optimizer side holds views of it.
            self.dead = ~local if self.dead is None else self.dead.copy_(~local)
        if self.packed or self.options.backend != "dense":
            mask = local.contiguous().cpu().numpy()
            index = LiveIndex(mask)
            if index.num_live == 0:
                raise UserError(
                    f"topology.storage={self.options.storage}: {self.shape.name} has no live "
                    f"weight on tensor-parallel rank {self.tp_rank} of {self.tp_size}. Raise "
                    "topology.density, or use storage masked with backend dense."
                )
            if self.packed and self.index is not None:
                assert index.num_live == self.index.num_live, self.shape.name
            backend = make_backend(self.options, index, mask, self.shape.name)
            self.index, self.backend = index.to(device), backend.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """[..., I_local] -> [..., O_local], without the bias."""
        if self.backend is None or self.index is None:
            y = masked_linear(x, self.weight, self.dead, self.tap)
        else:
            y = self.product(self, x)
        for part in self.parts.values() if self.parts is not None else ():
            y = y + part(x)
        return y

    def add_part(self, name: str, part: nn.Module) -> None:
        """From now on y += part(x), local to the rank and before the exchange over tp.

        Its parameters are parts.NAME.*; before an optimizer has seen the model.
        """
        self.parts = nn.ModuleDict() if self.parts is None else self.parts
        self.parts[name] = part

    def arrange(self, x: Tensor) -> Tensor:
        """x in the strides that this layer multiplies in, for layers that share their input."""
        return x if self.backend is None else self.rearrange(x, self.backend)

    @torch.no_grad()
    def fill(self, matrix: Tensor) -> None:
        """Set the weight from this rank's slice [O, I] of the matrix, zero where absent."""
        assert matrix.shape == self.local_shape, (matrix.shape, self.local_shape)
        self.weight.copy_(self.local_values(matrix) if self.packed else matrix)
        self.forget()

    def live_mask(self) -> Tensor:
        """bool [O, I] of this rank's slice, True = live: on the layer's device, from packed storage
        on the CPU."""
        if self.dead is not None:
            return ~self.dead
        assert self.index is not None
        return self.index.mask()

    def local_values(self, matrix: Tensor) -> Tensor:
        """The live values [N] of this rank's slice [O, I], on the CPU or the layer's device."""
        assert self.index is not None
        return self.index.gather(matrix.to(self.weight.device))

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """This rank's slice [O, I] of the matrix; not to be written to."""
        weight = self.weight.detach()
        return self.index.expand(weight) if self.packed and self.index else weight

    def forget(self) -> None:
        """The weight has changed: what was made of it must be made again."""
        if isinstance(self.backend, DenseBackend):
            self.backend.forget()

    def extra_repr(self) -> str:
        """Global size, density and split, for print(model)."""
        density = 1.0 if self.topology is None else self.topology.density
        return (
            f"{self.shape.in_features} -> {self.shape.out_features}, density {density:g}, "
            f"rank {self.tp_rank} of {self.tp_size} on dim {self.partition_dim}"
        )


def live_product(linear: SparseLinear, x: Tensor) -> Tensor:
    """The product of a layer that knows its live weights: [..., I] -> [..., O], local.

    The weight is read in here: a compiled model would make another graph for each number of live
    weights, which differs from layer to layer on a slice.
    """
    assert linear.backend is not None and linear.index is not None
    return sparse_product(x, linear.weight, linear.backend, linear.index, linear.tap)


class ColumnParallelSparseLinear(SparseLinear):
    """Splits the outputs: [..., I] -> [..., O / tp].

    The caller passes the input through `enter_tensor_parallel` once, for all such layers on it.
    """

    partition_dim = 0

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O_local]."""
        y = super().forward(x)
        return y if self.bias is None else y + self.bias


class RowParallelSparseLinear(SparseLinear):
    """Splits the inputs: [..., I / tp] -> [..., O], summed over tp. Collective over tp.

    The bias is added once, to the sum. Where positions are spread each rank adds it to its own, so
    its gradient is summed over tp.
    """

    partition_dim = 1

    def forward(self, x: Tensor, spread: bool = False, more: Tensor | None = None) -> Tensor:
        """[..., I_local] -> [..., O_local], the same on every rank of the tp group.

        Args:
            spread: leave each rank its positions only: [T, ..., I_local] -> [T / tp, ..., O_local].
            more: [..., O], another share of the same sum, which travels with it.
        """
        y = super().forward(x)
        y = self.exchange(y if more is None else y + more, spread)
        return y if self.bias is None else y + (self.share(self.bias) if spread else self.bias)
