"""y = x W^T on live weights, for every storage and backend, with its backward pass.

O = out_features, I = in_features, N = live weights, all local to the tensor-parallel rank; `...` =
any batch dims. Storage says what the parameter is: `packed` the live values [N],
`masked` the matrix [O, I] with zeros in absent cells. A backend knows the values [N] only.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sparsecl.sparse.index import LiveIndex
from sparsecl.sparse.tap import DenseTap


class Backend(nn.Module, ABC):
    """How a layer multiplies. Prepared once for a topology, used in each step.

    Its tensors are integer buffers. Products work on folded activations, x [..., I] and dy [..., O]
    in the form of `fold`, with any strides. What is not abstract here suits products on row-major
    [T, F].
    """

    @property
    def index_bytes(self) -> int:
        """Bytes of its indices, beside those of the layer's `LiveIndex`."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def is_row_major(self, device: torch.device) -> bool:
        """Whether it takes and gives row-major activations there, and never others."""
        return False

    def fold(self, x: Tensor) -> Tensor:
        """Batch dims in the number that the products want; a view if the strides allow it."""
        return x.reshape(-1, x.shape[-1])

    def arrange(self, x: Tensor) -> Tensor:
        """A folded x or dy in the strides that the products want; done once and kept."""
        return x

    def restore(self, x: Tensor) -> Tensor:
        """A folded tensor in row-major strides."""
        return x.contiguous()

    @abstractmethod
    def forward_product(self, x: Tensor, values: Tensor) -> Tensor:
        """y = x W^T."""

    @abstractmethod
    def grad_input(self, dy: Tensor, values: Tensor) -> Tensor:
        """dx = dy W."""

    @abstractmethod
    def grad_values(self, dy: Tensor, x: Tensor) -> Tensor:
        """dW = dy^T x in the live cells, [N]."""


class SparseProduct(torch.autograd.Function):
    """Linear map on live weights; the gradient has the form of the parameter."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        backend: Backend,
        index: LiveIndex,
        tap: DenseTap | None,
    ) -> Tensor:
        given = backend.fold(x)
        arranged = backend.arrange(given)
        # The parameter itself is saved, not what is made of it: under ZeRO-3 its storage is swapped
        # out after this call and back in before the backward pass.
        ctx.save_for_backward(arranged, weight)
        ctx.backend, ctx.index, ctx.tap, ctx.shape = backend, index, tap, x.shape
        ctx.row_major = given.stride(-1) == 1
        y = backend.forward_product(arranged, values_of(weight, index))
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        dy = ctx.backend.arrange(ctx.backend.fold(grad_outputs[0]))
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = ctx.backend.grad_input(dy, values_of(weight, ctx.index))
            # In the strides of x: they are what the function before this one works on.
            dx = (ctx.backend.restore(dx) if ctx.row_major else dx).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            dw = ctx.backend.grad_values(dy, x)
            if weight.dim() == 2:
                dw = ctx.index.expand(dw)
            if ctx.tap is not None:
                ctx.tap.add_product(dy, x)
        return dx, dw, None, None, None


def sparse_product(
    x: Tensor, weight: Tensor, backend: Backend, index: LiveIndex, tap: DenseTap | None = None
) -> Tensor:
    """Multiply by a weight that lives on a topology.

    Args:
        x: [..., I].
        weight: live values [N], or the matrix [O, I], same dtype as x.
        tap: takes the gradient of the whole matrix.

    Returns:
        [..., O]. The gradient of an absent weight of a matrix is zero.
    """
    out = SparseProduct.apply(x, weight, backend, index, tap)
    return out  # pyright: ignore[reportReturnType]


class _Arrange(torch.autograd.Function):
    """A change of strides, there and back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, backend: Backend) -> Tensor:
        ctx.backend = backend
        return backend.arrange(backend.fold(x)).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        dy = grad_outputs[0]
        return ctx.backend.restore(ctx.backend.fold(dy)).view(dy.shape), None


def arrange(x: Tensor, backend: Backend) -> Tensor:
    """x [..., I] in the strides that the backend wants: once for all layers that read it."""
    return _Arrange.apply(x, backend)  # pyright: ignore[reportReturnType]


def values_of(weight: Tensor, index: LiveIndex) -> Tensor:
    """Live values [N] of a weight in either form."""
    return weight if weight.dim() == 1 else index.gather(weight)
