"""A few weights under a plain torch optimizer, seen through slices."""

from types import SimpleNamespace

import torch
from torch import nn

from sparsecl.optim.slice import Slice
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


class FlatSlices(Slices):
    """Parameters of eight elements, [2, 4], which an optimizer steps as one tensor, each with two
    elements of another one behind it: what ZeRO 1 makes of a group."""

    def __init__(self, names: list[str], flat: nn.Parameter, optimizer: torch.optim.Optimizer):
        self.optimizer, self.stage, self.partitioned = optimizer, 1, True
        empty = torch.zeros(2, 4, device=flat.device)
        self._slices = [
            Slice(name, empty, flat, 10 * place, 0, 8) for place, name in enumerate(names)
        ]
