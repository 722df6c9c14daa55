"""Parameters that ZeRO 3 has cut up: what is left of one, and how large it is as a whole.

In other stages a parameter is what it seems. All functions are local.
"""

from typing import Any

import torch

from sparsecl.optim.deepspeed.known import take


def is_cut(param: Any) -> bool:
    """True if ZeRO 3 keeps this rank's share of the parameter, and the whole only for a while."""
    return hasattr(param, "ds_id")


# What ZeRO 3 hangs on a module, beside what begins with ds_.
_ON_MODULES = (
    "_original_parameters",
    "_external_params",
    "all_parameters",
    "pre_bwd_fn",
    "post_bwd_fn",
)


def hangs_on_modules(attribute: str) -> bool:
    """True for an attribute that ZeRO 3 has given a module."""
    return attribute.startswith("ds_") or attribute in _ON_MODULES


def shard(param: Any) -> torch.Tensor:
    """This rank's share of a cut parameter, flat; what fills the last rank's share up included."""
    return take(param, "ds_tensor")


def local_shape(param: Any) -> torch.Size:
    """Shape of the whole tp-local parameter."""
    return take(param, "ds_shape") if is_cut(param) else param.shape


def num_elements(param: Any) -> int:
    """Elements of the whole tp-local parameter."""
    return take(param, "ds_numel") if is_cut(param) else param.numel()


def is_gathered(param: Any) -> bool:
    """ZeRO 3 keeps a small parameter whole beside its shards, and any other until it frees it."""
    return is_cut(param) and param.data.numel() == num_elements(param)
