"""RigL: the vectors of its public code, and what a discarded step leaves."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.methods.dst.config import RiglConfig
from sparsecl.methods.dst.rigl import Rigl
from sparsecl.sparse.backends import LinearOptions
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.sparse.registry import masks
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.methods.plain import START, PlainContext

WEIGHTS = torch.tensor([[0.5, -0.1, 0.0, 0.0, 0.3, -0.2]])
LIVE = np.array([[True, True, False, False, True, True]])
GRADIENT = torch.tensor([[0.01, 0.9, -0.4, 0.2, 0.0, 0.05]])


def started(storage: str, **options: Any) -> tuple[PlainContext, Any, Rigl]:
    """One layer of six cells under SGD with momentum, and the method on it."""
    layer = ColumnParallelSparseLinear(
        LayerShape("w", "up", 1, 6),
        LayerTopology.from_mask("w", LIVE),
        options=LinearOptions(storage=storage),  # pyright: ignore[reportArgumentType]
    )
    layer.fill(WEIGHTS)
    method = Rigl(RiglConfig(**options))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    context = PlainContext(layer, optimizer, [method], dead=masks(layer))
    return context, optimizer, method


def step(context: PlainContext, optimizer: Any, *, applied: bool = True) -> None:
    """The gradient of y = W x with respect to W is x."""
    context.methods.step_start(context)
    optimizer.zero_grad()
    context.module(GRADIENT).sum().backward()  # pyright: ignore[reportCallIssue]
    context.step(optimizer, applied=applied)


@pytest.mark.parametrize("storage", ["masked", "packed"])
def test_by_hand(storage):
    """Of 4 weights 0 and 4 are kept; 1 comes back with its value, 2 is new."""
    context, optimizer, method = started(storage, drop_fraction=0.5, every=2)
    step(context, optimizer)
    layer: Any = context.module
    assert layer.live_mask().tolist() == [[True, True, True, False, True, False]]
    assert torch.equal(layer.matrix(), torch.tensor([[0.5, -0.1, 0.0, 0.0, 0.3, 0.0]]))
    assert method.last == 0 and not optimizer.state  # no step of the weights
    step(context, optimizer)
    assert layer.matrix()[0, 0] != 0.5
    assert context.progress.step == 2


@pytest.mark.parametrize("storage", ["masked", "packed"])
def test_a_weight_that_comes_back_keeps_its_momentum(storage):
    context, optimizer, method = started(storage, drop_fraction=0.5, every=1, schedule="constant")
    method.last = 0
    context.at(0)
    step(context, optimizer)  # not due: a step of the weights, so there is momentum
    layer: Any = context.module
    before = layer.matrix().clone()
    step(context, optimizer)
    moment = optimizer.state[layer.weight]["momentum_buffer"]
    moment = layer.index.expand(moment) if layer.packed else moment
    assert layer.live_mask().tolist() == [[True, True, True, False, True, False]]
    wanted = GRADIENT * torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    assert torch.equal(moment, wanted)  # 1 was dropped and came back, 2 is new, 5 is gone
    assert torch.equal(layer.matrix()[:, [0, 1, 4]], before[:, [0, 1, 4]])


def test_a_discarded_step_is_made_up_for():
    context, optimizer, method = started("masked", drop_fraction=0.9, every=5)
    before = {key: value.clone() for key, value in context.module.state_dict().items()}
    step(context, optimizer, applied=False)
    layer: Any = context.module
    assert method.last == -1 and layer.live_mask().tolist() == LIVE.tolist()
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())
    step(context, optimizer)
    assert method.last == 1 and layer.live_mask().tolist() != LIVE.tolist()


def test_cosine_of_the_drop_fraction():
    method = Rigl(RiglConfig(drop_fraction=0.3, end=1.0))
    found = [method.fraction(replace(START, step=t, total_steps=100)) for t in range(0, 101, 25)]
    assert found == pytest.approx([0.3, 0.256066, 0.15, 0.043934, 0.0], abs=1e-6)
    constant = Rigl(RiglConfig(schedule="constant"))
    assert constant.fraction(replace(START, step=50, total_steps=100)) == 0.3
    assert int(0.3 * 7) == 2  # truncated, as in the code


def test_when_it_is_due():
    """From step 0 every third, to step 15 of 20 inclusive."""
    method, due = Rigl(RiglConfig(every=3, end=0.75)), []
    for t in range(20):
        if method.is_due(replace(START, step=t, total_steps=20)):
            due.append(t)
            method.last = t
    assert due == [0, 3, 6, 9, 12, 15]


def test_fraction_zero_is_the_identity():
    context, optimizer, _ = started("masked", drop_fraction=0.0)
    step(context, optimizer)
    layer: Any = context.module
    assert layer.live_mask().tolist() == LIVE.tolist() and torch.equal(layer.matrix(), WEIGHTS)


@pytest.mark.parametrize("last", [-2, 2**62, True])
def test_a_state_that_is_none(last):
    with pytest.raises(ValueError, match="last"):
        Rigl(RiglConfig()).check_state((), {"last": last})
