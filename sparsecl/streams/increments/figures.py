"""The signs of lost plasticity of a network of images; names as in streams/figures.py.

A channel is a unit, and each position of an image a sample of it: the share of dormant units as in
the CIFAR-100 code of Dohare et al. 2024. `final_` is what the logits are made of, the means over
positions.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from sparsecl.metrics.plasticity import flat_figures
from sparsecl.metrics.ranks import rank_figures
from sparsecl.metrics.units import unit_figures
from sparsecl.sparse.units import by_unit
from sparsecl.streams.increments.networks import ImageNetwork


class _Layer:
    """Sums over what one layer gives."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.size, self.active = 0.0, 0
        self.gram, self.rows = 0.0, 0

    def add(self, h: Tensor) -> None:
        """h [rows, columns * n]"""
        wide = h.double()
        self.size = self.size + by_unit(wide.abs().sum(0), self.columns)
        self.active = self.active + by_unit(h.count_nonzero(0), self.columns)
        self.gram, self.rows = self.gram + wide.T @ wide, self.rows + len(h)

    def figures(self) -> dict[str, float]:
        sums, active, gram = (
            np.asarray(torch.as_tensor(x).cpu()) for x in (self.size, self.active, self.gram)
        )
        return {**unit_figures(sums, active, self.rows), **rank_figures(gram)}


@torch.no_grad()
def panel(model: ImageNetwork, images: Iterable[Tensor]) -> dict[str, float]:
    """Figures by name.

    Args:
        images: [k, channels, side, side], a part after the other.
    """
    layers: list[_Layer] = []
    final = _Layer(model.columns)
    for x in images:
        hidden, features = model.hidden(x)
        layers = layers or [_Layer(model.columns) for _ in hidden]
        for layer, h in zip(layers, hidden, strict=True):
            layer.add(h)
        final.add(features)
    return flat_figures(
        {f"layers.{k}": layer.figures() for k, layer in enumerate(layers)},
        final.figures(),
        _weights(model),
    )


def _weights(model: ImageNetwork) -> dict[str, float]:
    """Mean |w| over all weights that are there, and their norm; no biases."""
    masks, size, square, count = model.masks(), 0.0, 0.0, 0
    for name, param in model.named_parameters():
        if param.dim() > 1:
            wide = param.double()
            size, square = size + float(wide.abs().sum()), square + float(wide.square().sum())
            count += param.numel() - int(masks[name].sum() if name in masks else 0)
    return {"weight_mean_abs": size / count, "weight_norm": float(np.sqrt(square))}
