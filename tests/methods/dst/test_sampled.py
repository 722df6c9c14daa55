"""Draws without replacement, and what a weight is kept for."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from sparsecl.methods.dst.base import LayerView
from sparsecl.methods.dst.chts import Chts
from sparsecl.methods.dst.config import ChtsConfig
from sparsecl.methods.dst.hebb import highest, sampled

DRAWS = 40_000


def pairs(score: list[float], power: float) -> dict[tuple[int, ...], float]:
    rng = torch.Generator().manual_seed(0)
    values, found = torch.tensor(score, dtype=torch.float64), Counter()
    for _ in range(DRAWS):
        uniform = torch.rand(len(score), generator=rng, dtype=torch.float64)
        found[tuple(sorted(sampled(values, 2, power, uniform).tolist()))] += 1
    return {pair: count / DRAWS for pair, count in found.items()}


@pytest.mark.parametrize(
    ("score", "power", "expected"),
    [
        ([0.1, 0.2, 0.3], 2.0, {(0, 1): 0.050549, (0, 2): 0.178022, (1, 2): 0.771429}),
        # Of items with chances .5, .3, .2 the last two: .3 * .2 / .7 + .2 * .3 / .8.
        ([0.5, 0.3, 0.2], 1.0, {(1, 2): 0.3 * 0.2 / 0.7 + 0.2 * 0.3 / 0.8}),
        ([0.5, 0.3, 0.2], 0.0, {(0, 1): 1 / 3, (0, 2): 1 / 3, (1, 2): 1 / 3}),
    ],
)
def test_the_chances_are_those_of_drawing_one_after_the_other(score, power, expected):
    found = pairs(score, power)
    for pair, chance in expected.items():
        assert found[pair] == pytest.approx(chance, abs=4 * (chance / DRAWS) ** 0.5)


def test_a_large_power_takes_the_largest():
    rng = torch.Generator().manual_seed(0)
    score = torch.rand(50, generator=rng, dtype=torch.float64)
    uniform = torch.rand(50, generator=rng, dtype=torch.float64)
    assert set(sampled(score, 9, 1e6, uniform).tolist()) == set(score.topk(9).indices.tolist())
    assert sampled(score * 1e-300, 9, 9.0, uniform).unique().numel() == 9  # no underflow to 0


def test_a_score_of_zero_is_drawn_last():
    score = torch.tensor([0.0, 3.0, 0.0, 1e-20], dtype=torch.float64)
    for power in (0.0, 1.0):
        uniform = torch.rand(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert sorted(sampled(score, 2, power, uniform).tolist()) == [1, 3]


def test_ties_go_by_the_order_that_is_drawn():
    score = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0])
    first = {int(highest(score, 2, torch.randperm(5))[1]) for _ in range(60)}
    assert first == {0, 2, 3}
    assert highest(score, 5, torch.arange(5)).tolist() == [1, 0, 2, 3, 4]


def test_relative_importance():
    """Share of the row's sum and of the column's: by hand for [[1, 2], [3, 4]]."""
    live = torch.ones(4, dtype=torch.bool)
    choice = LayerView("w", torch.Size((2, 2)), 0, live, torch.tensor([1.0, -2.0, 3.0, 4.0]))
    found = Chts(ChtsConfig()).score(choice)
    assert found.tolist() == pytest.approx([0.58334, 1.00001, 1.17858, 1.23811], abs=1e-5)
    assert all(a < b for a, b in pairwise(found.tolist()))
    plain = Chts(ChtsConfig(removal="magnitude")).score(choice)
    assert plain.tolist() == [1.0, 2.0, 3.0, 4.0]
