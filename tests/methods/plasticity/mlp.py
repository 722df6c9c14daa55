"""Small networks with hidden units, for methods that look at these."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sparsecl.sparse.units import UnitGroup

FRESH = 0.5
"""What a redrawn weight is here."""


class Mlp(nn.Module):
    """Two layers; fresh weights are constants."""

    def __init__(self, inputs: int, hidden: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, outputs, bias=bias)
        self.units = UnitGroup(
            hidden,
            incoming=["fc1.weight", *(["fc1.bias"] if bias else [])],
            outgoing=["fc2.weight"],
            biases=["fc2.bias"] if bias else [],
            fresh=self.fresh,
        )

    def fresh(self, name: str, units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shape = (len(units),) if name.endswith("bias") else (len(units), self.fc1.in_features)
        return np.full(shape, 0.0 if name.endswith("bias") else FRESH, dtype=np.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.units(F.relu(self.fc1(x))))


def passing(outgoing: list[list[float]], incoming: list[list[float]]) -> Mlp:
    """Inputs pass the first layer as they are said to; outgoing [outputs, hidden]."""
    model = Mlp(len(incoming[0]), len(incoming), len(outgoing))
    model.fc1.weight.data = torch.tensor(incoming)
    model.fc2.weight.data = torch.tensor(outgoing)
    return model


class Given(Mlp):
    """Its hidden units are given in place of computed, so that a card's numbers can be used."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.units(x)) + 0.0 * self.fc1.weight.sum()


def given(outgoing: list[list[float]], incoming: list[list[float]]) -> Given:
    model = Given(len(incoming[0]), len(incoming), len(outgoing))
    model.fc1.weight.data = torch.tensor(incoming)
    model.fc2.weight.data = torch.tensor(outgoing)
    return model
