"""A copy of a model as it is: for forward passes only, and free of whoever trains the model.

Not copy.deepcopy: on a model in training hang DeepSpeed's hooks, with all that they know, and
compiled passes that are bound to the blocks they were made of.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsecl.optim.deepspeed.parameters import hangs_on_modules
from sparsecl.sparse.registry import forget_expansions


@torch.no_grad()
def frozen_copy(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A model of the same parts, in eval mode. Local.

    It holds its weights whole (tp-local) and in their precision, and masks and indices of its own,
    so that a graph that moves does not move it.

    Args:
        weights: by parameter name, in the shape of the parameter; kept, not copied.
    """
    made: dict[int, nn.Module] = {}
    copy = _copy(model, "", weights, made).eval()
    forget_expansions(copy)
    return copy


def _copy(
    part: nn.Module, prefix: str, weights: Mapping[str, Tensor], made: dict[int, nn.Module]
) -> nn.Module:
    if id(part) in made:  # a part that two others know
        return made[id(part)]
    new = made[id(part)] = part.__class__.__new__(part.__class__)
    own: dict[str, Any] = {
        key: {} if "_hooks" in key else value.clone() if torch.is_tensor(value) else value
        for key, value in vars(part).items()
        if not hangs_on_modules(key)
    }
    own.pop("forward", None)  # a compiled pass of the original
    own["_parameters"] = {
        name: None if value is None else nn.Parameter(weights[prefix + name], requires_grad=False)
        for name, value in part._parameters.items()
    }
    own["_buffers"] = {
        name: None if value is None else value.clone() for name, value in part._buffers.items()
    }
    own["_modules"] = {
        name: None if child is None else _copy(child, f"{prefix}{name}.", weights, made)
        for name, child in part._modules.items()
    }
    vars(new).update(own)
    return new
