"""The two tensor-parallel edges of a pair of split linears, on Megatron-core's mappings.

A column-parallel layer needs its input on every rank: identity forward, sum over tp backward. A
row-parallel layer produces partial sums: sum over tp forward, identity backward. In a process
without tensor parallelism both are the identity, and no process group is needed.
"""

from megatron.core.tensor_parallel import mappings
from torch import Tensor

from sparsecl import dist


def copy_to_tensor_parallel(x: Tensor) -> Tensor:
    """Hand a replicated x to the ranks of the tp group; its gradient is summed over them.

    Call it once for all layers that share the input (q, k and v), so that their gradients are
    added first and travel in one all-reduce. The backward pass is collective over tp.
    """
    if dist.tp_size() == 1:
        return x
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
    # Contiguous for the same reason as above.
    return mappings.reduce_from_tensor_model_parallel_region(x.contiguous(), group=dist.tp_group())
