"""One linear with adapters, as a method sees a model."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from sparsecl.methods.adapters.config import AdapterConfig
from sparsecl.methods.adapters.pairs import Adapters
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.topology.layer import LayerShape
from tests.methods import plain
from tests.methods.plain import PlainContext

FACTS = replace(
    plain.FACTS,
    dense=True,
    layers=(LayerShape("q", "q", 4, 4), LayerShape("v", "v", 4, 4)),
)


class Model(nn.Module):
    """One linear named q, 3 inputs, of ones."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.q = ColumnParallelSparseLinear(LayerShape("q", "q", out, 3), None)
        nn.init.ones_(self.q.weight)

    def linears(self):
        return {"q": self.q}

    def add(self, at, name, part):
        self.q.add_part(name, part)

    def generator(self, *names):
        return np.random.default_rng(0)


def attached(
    kind: type[Adapters], config: AdapterConfig, num_phases: int = 4, out: int = 2
) -> tuple[Adapters, Model, PlainContext]:
    """A method on a model, under gradient descent."""
    method, model = kind(config), Model(out)
    method.attach(model, num_phases)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return method, model, PlainContext(model, optimizer, [method])


def zero_gradients(model: nn.Module, value: float = 0.0) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, value)
