"""What a hidden unit gives for its input z, and how gradients and curvatures come back through it.

    relu        max(z, 0)
    leaky_relu  z above zero, LEAK z below (Maas et al. 2013)
    tanh        tanh(z)
    crelu       max(z, 0) and max(-z, 0), both (Shang et al. 2016, https://arxiv.org/abs/1603.05201;
                against the loss of plasticity Abbas et al. 2023, https://arxiv.org/abs/2303.07507)

Under crelu n units give 2n activations, the two of a unit side by side, where the papers have all
of one sign first: the same network under another numbering.

h = what was given, [..., n] or [..., 2n]. Backward passes ask for h alone, so no z is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEAK = 0.01  # of torch and of the code of Dohare et al. 2024

aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """f, as three functions of tensors of any shape."""

    forward: Callable[[Tensor], Tensor]
    """z -> h; autograd goes through it."""

    backward: Callable[[Tensor, Tensor], Tensor]
    """(dL/dh, h) -> dL/dz"""

    curve: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(d2L/dh2, dL/dh, h) -> d2L/dz2, the diagonals: f'^2 d2L/dh2 + f'' dL/dh."""

    bent: bool = False
    """f'' is not zero, so `curve` looks at dL/dh."""

    paired: bool = False
    """A unit gives two activations. Then methods see its z: what multiplies z by a number that is
    not negative multiplies both."""


def _relu_back(delta: Tensor, h: Tensor) -> Tensor:
    return aten.threshold_backward(delta, h, 0)


def _leaky_back(delta: Tensor, h: Tensor) -> Tensor:
    return aten.leaky_relu_backward(delta, h, LEAK, True)


def _tanh_curve(curve: Tensor, delta: Tensor, h: Tensor) -> Tensor:
    slope = 1.0 - h.square()
    return slope.square() * curve - 2.0 * h * slope * delta


def _crelu(z: Tensor) -> Tensor:
    return torch.stack((z, -z), -1).flatten(-2).relu()


def _crelu_back(delta: Tensor, h: Tensor) -> Tensor:
    above, below = _relu_back(delta, h).unflatten(-1, (-1, 2)).unbind(-1)
    return above - below


def _crelu_curve(curve: Tensor, delta: Tensor, h: Tensor) -> Tensor:
    above, below = _relu_back(curve, h).unflatten(-1, (-1, 2)).unbind(-1)
    return above + below


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(torch.relu, _relu_back, lambda curve, delta, h: _relu_back(curve, h)),
    "leaky_relu": Activation(
        lambda z: torch.nn.functional.leaky_relu(z, LEAK),
        _leaky_back,
        lambda curve, delta, h: _leaky_back(_leaky_back(curve, h), h),
    ),
    "tanh": Activation(torch.tanh, lambda d, h: aten.tanh_backward(d, h), _tanh_curve, bent=True),
    "crelu": Activation(_crelu, _crelu_back, _crelu_curve, paired=True),
}
"""By learner.activation."""
