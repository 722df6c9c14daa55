"""The product of a layer that knows its live weights, as operators of torch.

torch.compile keeps a call of one in its graph: it knows shape and strides of the result, and not
what happens inside. An operator cannot be given a layer, so it gets a tensor that holds the layer's
number. A tensor's content is no part of a graph: all blocks have the same one, whatever lies in
their layers. Results are row-major; what wants other strides stays outside of graphs (product.py).
"""

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

from sparsecl.sparse.index import LiveIndex
from sparsecl.sparse.linear import SparseLinear
from sparsecl.sparse.product import Backend, values_of

_numbers = itertools.count()
_layers: "weakref.WeakValueDictionary[int, SparseLinear]" = weakref.WeakValueDictionary()


def number(layer: SparseLinear) -> None:
    """Give a layer its number, by which `product_in_graph` finds it."""
    layer.number = torch.tensor(next(_numbers))
    _layers[int(layer.number)] = layer


def product_in_graph(linear: SparseLinear, x: Tensor) -> Tensor:
    """[..., I] -> [..., O], local: what live_product of linear.py does, for a compiled block."""
    assert linear.number is not None
    return live_product(x, linear.weight, linear.number, linear.local_shape[0])


def _found(number: Tensor) -> tuple[Backend, LiveIndex]:
    layer = _layers[int(number)]
    assert layer.backend is not None and layer.index is not None
    return layer.backend, layer.index


@torch.library.custom_op("sparsecl::live_product", mutates_args=())
def live_product(x: Tensor, weight: Tensor, number: Tensor, out_features: int) -> Tensor:
    """y = x W^T: x [..., I], weight [N] or [O, I] -> [..., O]."""
    backend, index = _found(number)
    y = backend.forward_product(backend.arrange(backend.fold(x)), values_of(weight, index))
    return y.reshape(*x.shape[:-1], out_features).contiguous()


@torch.library.custom_op("sparsecl::live_grad_input", mutates_args=())
def live_grad_input(dy: Tensor, weight: Tensor, number: Tensor, in_features: int) -> Tensor:
    """dx = dy W: [..., O] -> [..., I]."""
    backend, index = _found(number)
    dx = backend.grad_input(backend.arrange(backend.fold(dy)), values_of(weight, index))
    return dx.reshape(*dy.shape[:-1], in_features).contiguous()


@torch.library.custom_op("sparsecl::live_grad_weight", mutates_args=())
def live_grad_weight(dy: Tensor, x: Tensor, weight: Tensor, number: Tensor) -> Tensor:
    """dW = dy^T x in live cells, in the form of the weight."""
    backend, index = _found(number)
    given = (backend.arrange(backend.fold(tensor)) for tensor in (dy, x))
    dw = backend.grad_values(*given)
    return dw if weight.dim() == 1 else index.expand(dw)


@live_product.register_fake
def _(x: Tensor, weight: Tensor, number: Tensor, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@live_grad_input.register_fake
def _(dy: Tensor, weight: Tensor, number: Tensor, in_features: int) -> Tensor:
    return dy.new_empty(*dy.shape[:-1], in_features)


@live_grad_weight.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, number: Tensor) -> Tensor:
    return weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, number, _ = inputs
    ctx.save_for_backward(x, weight, number)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, weight, number = ctx.saved_tensors
    dx = dw = None
    if ctx.needs_input_grad[0]:
        dx = live_grad_input(dy, weight, number, x.shape[-1])
    if ctx.needs_input_grad[1]:
        dw = live_grad_weight(dy, x, weight, number)
    return dx, dw, None, None


live_product.register_autograd(_backward, setup_context=_save)
