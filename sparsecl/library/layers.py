"""Linear layers of other people's models: what they are called, and which shape they have."""

import sys
from collections import defaultdict
from typing import Any

from torch import nn


def bare(model: nn.Module) -> nn.Module:
    """The model inside DDP and torch.compile, so that names do not depend on them."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := model.__dict__["_modules"].get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def is_conv1d(layer: nn.Module) -> bool:
    """True for transformers' Conv1D: a linear layer whose weight is [in, out]."""
    # A model can hold one only if transformers has been imported.
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return conv1d is not None and isinstance(layer, conv1d)


def maskable(layer: nn.Module) -> bool:
    """True if the layer can be masked."""
    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def linear_shape(layer: Any) -> tuple[int, int]:
    """(out, in) of a whole layer, also where its weight is cut up."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.nf, layer.nx


def owners(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that hold each parameter, by its id."""
    found: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for param in module.parameters(recurse=False):
            found[id(param)].append(name)
    return found
