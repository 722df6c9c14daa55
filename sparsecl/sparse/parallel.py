"""The tensor-parallel edges of a pair of split linears, in two forms.

T = tokens of a sequence, B = sequences, W = width. A column-parallel layer needs its input on every
rank; a row-parallel layer produces partial sums. Between such pairs (norms, residual stream) the
features of all positions are either

- whole on every rank: identity forward and sum over tp backward before the pair, sum forward and
  identity backward after it, on Megatron-core's mappings; or
- spread: every rank has the features of T / tp consecutive positions. They are gathered before the
  pair, and its sums scattered after it; each is the backward pass of the other. Korthikanti et al.
  2022, https://arxiv.org/abs/2205.05198, section 4.2.2. A ring sends as many bytes in either form.
  Differs: the gathered input is kept for the backward pass and not gathered a second time there.

Collectives join and cut the first dim, so spread features lie position first, [T / tp, B, W]: what
is gathered is in order as it comes. Megatron-core has such mappings too, but for CUDA alone.

In a process without tensor parallelism all edges are the identity, and no process group is needed.
"""

from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from sparsecl import dist


def enter_tensor_parallel(x: Tensor, spread: bool = False) -> Tensor:
    """Hand features to column-parallel layers. Its backward pass is collective over tp.

    Call it once for all layers that share the input (q, k and v), so that their gradients are
    added first and travel together.

    Args:
        x: [..., W] whole, or [T / tp, ...] spread; then this is collective too.

    Returns:
        The features of all positions; position first if they were spread.
    """
    if dist.tp_size() == 1:
        return x
    if spread:
        return _Gather.apply(x)  # pyright: ignore[reportReturnType]
    return copy_to_tensor_parallel(x)


def leave_tensor_parallel(x: Tensor, spread: bool = False) -> Tensor:
    """Sum the partial results of a row-parallel layer. Collective over tp; x may be overwritten.

    Args:
        x: partial sums for all positions; position first, with T divisible by tp, if spread.

    Returns:
        The sums: of all positions, or [T / tp, ...] of this rank's.
    """
    if dist.tp_size() == 1:
        return x
    if spread:
        return _Scatter.apply(x)  # pyright: ignore[reportReturnType]
    return reduce_from_tensor_parallel(x)


def copy_to_tensor_parallel(x: Tensor) -> Tensor:
    """Hand what is whole to the ranks of the tp group; its gradient is summed over them.

    The backward pass is collective over tp.
    """
    if dist.tp_size() == 1:
        return x
    from megatron.core.tensor_parallel import mappings  # seconds: only where there is tp

    y = mappings.copy_to_tensor_model_parallel_region(x, group=dist.tp_group())
    if y.requires_grad:
        # Megatron reduces a contiguous copy and returns the original: a gradient that is not
        # contiguous would pass unreduced, without an error.
        y.register_hook(Tensor.contiguous)
    return y


def reduce_from_tensor_parallel(x: Tensor) -> Tensor:
    """Sum partial results over the tp group. Collective over tp; x may be overwritten."""
    if dist.tp_size() == 1:
        return x
    from megatron.core.tensor_parallel import mappings

    # Contiguous for the same reason as above.
    return mappings.reduce_from_tensor_model_parallel_region(x.contiguous(), group=dist.tp_group())


def summed_gradient(parameter: Tensor) -> Tensor:
    """A replicated parameter for use on each rank's own share of the data (positions, features):
    its gradient is summed over tp.

    The shares are added before anybody
    sees them: DeepSpeed, methods and the gradient norm find the same whole gradient on every rank.
    The backward pass is collective over tp.
    """
    # A copy, because autograd keeps it: a view of the parameter would keep alive what ZeRO-3 has
    # gathered, and the parameters that came in the same call with it.
    return copy_to_tensor_parallel(parameter.clone())


def spread_positions(x: Tensor) -> Tensor:
    """This rank's positions [T / tp, ...] of replicated features [T, ...], T divisible by tp.

    The backward pass gathers the gradient of all positions; it is collective over tp.
    """
    return x if dist.tp_size() == 1 else _Split.apply(x)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    """Positions of all ranks forward; partial gradients summed and scattered backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _scatter(grad_outputs[0])


class _Scatter(torch.autograd.Function):
    """The reverse of `_Gather`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _scatter(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _gather(grad_outputs[0])


class _Split(torch.autograd.Function):
    """Own positions forward; the gradients of all positions, which are no sums, backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # A copy: the rest need not stay alive.
        return x.chunk(dist.tp_size())[dist.tp_rank()].clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _gather(grad_outputs[0])


def _gather(x: Tensor) -> Tensor:
    """[T / tp, ...] of each rank -> [T, ...] on all of them."""
    whole = x.new_empty(x.shape[0] * dist.tp_size(), *x.shape[1:])
    torch_dist.all_gather_into_tensor(whole, x.contiguous(), group=dist.tp_group())
    return whole


def _scatter(x: Tensor) -> Tensor:
    """The sum over ranks of x [T, ...], this rank's positions [T / tp, ...]."""
    assert x.shape[0] % dist.tp_size() == 0, (x.shape, dist.tp_size())
    part = x.new_empty(x.shape[0] // dist.tp_size(), *x.shape[1:])
    torch_dist.reduce_scatter_tensor(part, x.contiguous(), group=dist.tp_group())
    return part
