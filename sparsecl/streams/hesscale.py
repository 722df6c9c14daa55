"""HesScale: the diagonal of the Hessian by one pass backwards, at about the cost of a gradient.

Source: Elsayed & Mahmood 2022 (https://arxiv.org/abs/2210.11639) and the public code
mohmdelsayed/HesScale. Only diagonals are passed on, of a sample:

    at the logits of a softmax   p (1 - p)
    through h = f(z)             d2L/dz2 = f'(z)^2 d2L/dh2 + f''(z) dL/dh
    through z = W x + b          d2L/dx2 = (W^2)^T d2L/dz2
    of the layer itself          d2L/dW2 = d2L/dz2 (x^2)^T,  d2L/db2 = d2L/dz2

So it is exact for the last layer, and behind it lacks what pairs of outputs do together.

N = networks, B = images of a step, O, I = outputs and inputs of a layer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sparsecl.streams.models import Networks


@torch.no_grad()
def diagonals(
    model: Networks, x: Tensor, y: Tensor, weight: Tensor | None = None
) -> dict[str, Tensor]:
    """Of the mean cross entropy of each network over its images, by parameter name: [N, O, I] of
    weights, zero where absent, and [N, O] of biases.

    Args:
        x: [N, B, inputs]
        y: int64 [N, B]
        weight: [B], factors of the images in the mean; None = all are 1.
    """
    layers: list[Any] = list(model.layers)
    inputs = [x, *model.hidden(x)]
    share = x.new_full((1,), 1.0 / x.shape[1]) if weight is None else weight / x.shape[1]
    p = layers[-1].activate(inputs[-1]).softmax(-1)
    curve = p * (1.0 - p) * share[:, None]
    delta = (p - one_hot(y, p.shape[-1])) * share[:, None]
    found: dict[str, Tensor] = {}
    bent = any(layer.activation.bent for layer in layers[:-1])
    for layer in reversed(layers):
        given = inputs.pop()
        name, square = layer.shape.name, given.square()
        across = curve.transpose(1, 2)
        of_weight = across * square if x.shape[1] == 1 else torch.bmm(across, square)
        if layer.dead is not None:
            of_weight.masked_fill_(layer.dead.view_as(of_weight), 0.0)
        found[f"{name}.weight"], found[f"{name}.bias"] = of_weight, curve.sum(1)
        if inputs:
            before = layers[len(inputs) - 1].activation
            curve = torch.bmm(curve, layer.matrices.square())
            if bent:
                delta = torch.bmm(delta, layer.matrices)
            curve = before.curve(curve, delta, given)
            if bent:
                delta = before.backward(delta, given)
    return found
