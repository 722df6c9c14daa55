"""The signs of lost plasticity of each network, on images that it has yet to learn.

S = images of the probe, N = networks, n = units of a hidden layer. The names and their definitions
are those of a GPT's panel (metrics/units.py, metrics/ranks.py, metrics/plasticity.py). All hidden
layers count alike in a mean; `final_` is the last one. Under crelu a unit is its z: |h| is |z|, and
it is dead where z is always 0. Ranks are those of activations, which the next layer sees.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl.metrics.plasticity import flat_figures
from sparsecl.metrics.ranks import erank, rank_figures, singular_values
from sparsecl.metrics.units import unit_figures
from sparsecl.sparse.units import by_unit
from sparsecl.streams.models import Networks


@torch.no_grad()
def panel(model: Networks, x: Tensor, y: Tensor) -> list[dict[str, float]]:
    """Figures of each network by name, with `accuracy_before`, the share that is answered right.

    Args:
        x: [N, S, inputs]
        y: int64 [N, S]
    """
    hidden = model.hidden(x)
    last: Any = model.layers[-1]
    right = (last.activate(hidden[-1] if hidden else x).argmax(-1) == y).double().mean(1).tolist()
    layers = [layer_figures(h, model.columns) for h in hidden]
    sizes = weight_figures(model)
    return [
        {
            "accuracy_before": right[k],
            **flat_figures(
                {f"layers.{i}": figures[k] for i, figures in enumerate(layers)},
                layers[-1][k] if layers else {},
                sizes[k],
            ),
        }
        for k in range(len(right))
    ]


def layer_figures(h: Tensor, columns: int = 1) -> list[dict[str, float]]:
    """Shares of units and ranks of activations [N, S, columns * n], of each network."""
    # Of two activations of a unit one is zero, so their counts add up as their sizes do.
    sums = by_unit(h.abs().sum(1, dtype=torch.float64), columns).cpu().numpy()
    active = by_unit(h.count_nonzero(1), columns).cpu().numpy()
    wide = h.double()
    turned = wide.transpose(1, 2)
    gram = turned @ wide if h.shape[1] > h.shape[2] else wide @ turned
    return [
        {**unit_figures(s, a, h.shape[1]), **rank_figures(g)}
        for s, a, g in zip(sums, active, gram.cpu().numpy(), strict=True)
    ]


def change_eranks(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[float]:
    """Effective rank of what has changed in weights [N, O, I], by layer: the directions that a task
    has used. Mean over layers, of each network; no layers: empty."""
    found = []
    for name, weight in now.items():
        change = (weight.detach() - before[name]).double()
        turned = change.transpose(1, 2)
        gram = change @ turned if change.shape[1] < change.shape[2] else turned @ change
        found.append([erank(singular_values(one)) for one in gram.cpu().numpy()])
    return np.mean(found, axis=0).tolist() if found else []


def weight_figures(model: Networks) -> list[dict[str, float]]:
    """Mean |w| over all weights that are there, and their norm, of each network; no biases."""
    sums = 0.0
    for layer in model.layers:
        weight: Any = layer.weight
        flat = weight.detach().view(-1, *weight.shape[-2:]).flatten(1).double()
        count = torch.full_like(flat[:, 0], flat.shape[1])
        if layer.dead is not None:
            dead: Any = layer.dead
            count -= dead.view(len(flat), -1).sum(1)
        sums = sums + torch.stack([flat.abs().sum(1), flat.square().sum(1), count], 1)
    rows = np.asarray(sums.cpu())  # pyright: ignore
    return [
        {"weight_mean_abs": float(size / count), "weight_norm": float(np.sqrt(square))}
        for size, square, count in rows
    ]
