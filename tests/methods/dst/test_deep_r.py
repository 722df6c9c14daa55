"""DEEP R by hand, on four cells."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.methods.dst.config import DeepRConfig
from sparsecl.methods.dst.deep_r import REVIVED, DeepR
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.sparse.registry import masks
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.methods.plain import PlainContext

# theta [.02, .001, 0, .5] with signs [1, -1, 1, -1]; the third is absent.
WEIGHTS = torch.tensor([[0.02, -0.001, 0.0, -0.5]])
# s g, with g = [1, 1, 2, -1] the gradient of the weight: of theta it is s g.
GRADIENT = torch.tensor([[1.0, 1.0, 2.0, -1.0]])
LIVE = np.array([[True, True, False, True]])


def started(weights: torch.Tensor = WEIGHTS, live: Any = LIVE, **options: Any) -> Any:
    shape = LayerShape("w", "up", *weights.shape)
    layer = ColumnParallelSparseLinear(shape, LayerTopology.from_mask("w", live))
    layer.fill(weights)
    method = DeepR(DeepRConfig(**options))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    context = PlainContext(layer, optimizer, [method], dead=masks(layer))
    return context, optimizer, method


def step(context: PlainContext, optimizer: Any, gradient: torch.Tensor = GRADIENT) -> None:
    context.methods.step_start(context)
    optimizer.zero_grad()
    (context.module.weight * gradient).sum().backward()  # pyright: ignore
    context.step(optimizer)


def test_one_step_by_hand():
    """The first link crosses zero and goes; one of the two that are absent then comes."""
    context, optimizer, method = started(l1=0.01, noise=0.0)
    method.step_start(context)
    step(context, optimizer)
    layer: Any = context.module
    weights = layer.matrix().detach()[0]
    assert weights[3] == pytest.approx(-0.399) and weights[1] == pytest.approx(-0.1)
    live = layer.live_mask()[0]
    assert live[1] and live[3] and int(live.sum()) == 3
    came = 0 if live[0] else 2
    assert weights[came] == pytest.approx(REVIVED * float(method.signs["weight"][0, came]))


def test_counts_and_signs_stay():
    """No link changes its sign as long as it lives, and as many live after every step."""
    rng = torch.Generator().manual_seed(3)
    live = (torch.rand(6, 8, generator=rng) < 0.4).numpy()
    weights = torch.randn(6, 8, generator=rng) * torch.from_numpy(live) * 0.05
    context, optimizer, method = started(weights, live, l1=0.01, noise=0.1)
    layer: Any = context.module
    context.progress = replace(context.progress, total_steps=30)
    moved = 0
    for _ in range(30):
        step(context, optimizer, torch.randn(6, 8, generator=rng))
        after, mask = layer.matrix().detach(), layer.live_mask()
        assert int(mask.sum()) == int(live.sum())
        assert (after.sign()[mask] == method.signs["weight"][mask]).all()
        assert (after[~mask] == 0).all()
        moved += int((mask != torch.from_numpy(live)).sum())
    assert moved > 30


def test_nothing_crosses_without_noise_and_pull():
    """Then it is SGD on the mask."""
    context, optimizer, _ = started(l1=0.0, noise=0.0)
    step(context, optimizer, torch.tensor([[0.01, 0.001, 9.0, -0.2]]))
    layer: Any = context.module
    expected = WEIGHTS - 0.1 * torch.tensor([[0.01, 0.001, 0.0, -0.2]])
    assert layer.matrix().allclose(expected) and layer.live_mask().tolist() == LIVE.tolist()


@pytest.mark.parametrize(("p", "expected"), [(0.005, -4.975e-5), (0.1, -2.25e-6)])
def test_the_floor_of_the_soft_walk(p, expected):
    """-(1 - p) / (p beta) with beta = l1 / T and T = lr noise^2 / 2, lr 0.05, l1 = noise = 1e-5."""
    size = round(1 / p)
    live = np.zeros((1, size), bool)
    live[0, 0] = True
    context, optimizer, method = started(
        torch.from_numpy(live).float(), live, l1=1e-5, noise=1e-5, variant="soft"
    )
    optimizer.param_groups[0]["lr"] = 0.05
    method.step_start(context)
    method.walks["weight"].fill_(-1.0)  # far below
    step(context, optimizer, torch.zeros(1, size))
    assert float(method.walks["weight"].min()) == pytest.approx(expected, rel=1e-3)


def test_soft_needs_both():
    from sparsecl.methods.facts import RunFacts

    facts = RunFacts(dense=False, role="topology", storage="masked", joint=False, num_phases=2,
                     micro=4, layers=(), optimizer="adamw", others=())  # fmt: skip
    DeepRConfig(variant="soft").check(facts)
    with pytest.raises(ValueError, match="l1 and noise above 0"):
        DeepRConfig(variant="soft", noise=0.0).check(facts)
