"""CHTs with a surplus (EM_S), and by heads."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.methods.dst.chts import Chts
from sparsecl.methods.dst.config import ChtsConfig
from sparsecl.methods.dst.hebb import shared
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.sparse.registry import masks
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.methods.plain import START, PlainContext

HARD: Any = {"temperature": (1e6, 1e6), "removal": "magnitude", "growth": "top"}
"""The largest stay, the best come."""


def test_surplus_by_hand():
    """Rewires at 0, 10, .. 70 of 75: 60 % is 45, and after 70 there is none."""
    config = ChtsConfig(every=10, em_s=(0.05, 0.025))
    found = [config.surplus(replace(START, step=t, total_steps=100)) for t in range(0, 80, 10)]
    assert found == [0.05] * 5 + [0.025] * 2 + [0.0]


def test_a_last_rewire_that_was_discarded_is_made_up_for():
    config = ChtsConfig(every=10, em_s=(0.05, 0.025), end=0.7)
    at = replace(START, step=71, total_steps=100)
    assert config.is_due_in_place(at, 60) and not config.is_due_in_place(at, 70)
    assert config.surplus(at) == 0.0
    assert not ChtsConfig(every=10, end=0.7).is_due_in_place(at, 60)


def rewired(live: np.ndarray, weight: torch.Tensor, steps: int, **options: Any) -> list[Any]:
    """The live sets of a layer of heads of two rows, after each step."""
    rows, columns = live.shape
    layer = ColumnParallelSparseLinear(
        LayerShape("w", "q", rows, columns, head_width=2), LayerTopology.from_mask("w", live)
    )
    layer.fill(torch.where(torch.from_numpy(live), weight, 0.0))
    method = Chts(ChtsConfig(every=1, end=1.0, **HARD, **options))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    context, found = PlainContext(layer, optimizer, [method], dead=masks(layer)), []
    context.progress = replace(START, total_steps=steps - 1, phase_steps=steps - 1)
    for _ in range(steps):
        context.methods.step_start(context)
        layer(torch.zeros(1, columns)).sum().backward()
        context.step(optimizer)
        found.append(layer.live_mask())
    return found


def test_live_weights_by_hand():
    """Of 40 cells 20 live: the target is 12; up to step 3 of 5 there are 8 more, then 4."""
    live = np.arange(40).reshape(4, 10) % 2 == 0
    found = rewired(live, torch.arange(1.0, 41.0).view(4, 10), 6, em_s=(0.2, 0.1))
    assert [int(mask.sum()) for mask in found] == [20, 20, 20, 20, 16, 12]
    # The 12 largest stayed: the last row and a half, and more; what came has the weight 0.
    largest = torch.arange(40).view(4, 10)[torch.from_numpy(live)][-12:]
    assert bool(found[0].view(-1)[largest].all())


def test_each_head_keeps_its_count_and_its_largest():
    """The first head's weights are all smaller than the second's: alone they would go first."""
    live = np.zeros((4, 6), bool)
    live[0, :4] = live[1, 2:] = live[2, ::2] = live[3, 1::2] = True
    weight = torch.arange(1.0, 25.0).view(4, 6)
    (whole,), (heads,) = (
        rewired(live, weight, 1, drop_fraction=0.5, schedule="constant", per_head=by)
        for by in (False, True)
    )
    assert whole[2:][torch.from_numpy(live[2:])].all() and int(whole.sum()) == 14
    assert (int(heads[:2].sum()), int(heads[2:].sum())) == (8, 6)
    # 4 of 8 and 3 of 6 stay, the largest: the second row of each head.
    assert heads[1, 2:].all() and heads[3, 1::2].all()


def test_shares_by_hand():
    assert shared(14, [8, 6]) == [8, 6]
    assert shared(7, [8, 6]) == [4, 3]
    assert shared(10, [1, 1, 1]) == [3, 4, 3]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"em_s": (0.01, 0.05)}, "em_s"),
        ({"em_s": (0.05, -0.1)}, "em_s"),
        ({"em_s": (0.05, 0.02), "final_density": 0.1}, "final_density"),
    ],
)
def test_bad_options(options, word):
    with pytest.raises(ValueError, match=word):
        ChtsConfig(**options)
