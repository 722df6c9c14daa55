"""A few weights under a plain torch optimizer, seen through slices."""

from types import SimpleNamespace

import torch
from torch import nn

from sparsecl.optim.slices import Slices


def slices_of(weight: nn.Parameter | nn.Module, optimizer: torch.optim.Optimizer) -> Slices:
    """Slices of an engine without ZeRO, in fp32: what `deepspeed.initialize` gives in stage 0.

    A parameter alone is named `weight`.
    """
    module = weight
    if isinstance(weight, nn.Parameter):
        module = nn.Module()
        module.weight = weight
    engine = SimpleNamespace(
        optimizer=optimizer,
        basic_optimizer=optimizer,
        module=module,
        zero_optimization_stage=lambda: 0,
    )
    return Slices(engine)
