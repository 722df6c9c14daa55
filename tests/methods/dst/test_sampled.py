"""Draws without replacement, and what a weight is kept for."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from sparsecl.methods.dst.base import LayerView
from sparsecl.methods.dst.choice import by_sorting, highest, largest, smallest
from sparsecl.methods.dst.chts import Chts
from sparsecl.methods.dst.config import ChtsConfig
from sparsecl.methods.dst.hebb import sampled

DRAWS = 40_000


def where(chosen: torch.Tensor) -> list[int]:
    return chosen.nonzero().view(-1).tolist()


def pairs(score: list[float], power: float) -> dict[tuple[int, ...], float]:
    rng = torch.Generator().manual_seed(0)
    values, found = torch.tensor(score, dtype=torch.float64), Counter()
    for _ in range(DRAWS):
        uniform = torch.rand(len(score), generator=rng, dtype=torch.float64)
        found[tuple(where(sampled(values, 2, power, uniform)))] += 1
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
    assert where(sampled(score, 9, 1e6, uniform)) == sorted(score.topk(9).indices.tolist())
    assert sampled(score * 1e-300, 9, 9.0, uniform).sum() == 9  # no underflow to 0


def test_a_score_of_zero_is_drawn_last():
    score = torch.tensor([0.0, 3.0, 0.0, 1e-20], dtype=torch.float64)
    for power in (0.0, 1.0):
        uniform = torch.rand(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert where(sampled(score, 2, power, uniform)) == [1, 3]


def test_ties_are_broken_evenly_by_a_key():
    score = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0])
    found = Counter(tuple(where(highest(score, 2, key))) for key in range(3000))
    assert found.keys() == {(0, 1), (1, 2), (1, 3)} and min(found.values()) > 900  # 1000 - 3.9 sd
    for num, wanted in [(0, []), (1, [1]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4])]:
        assert where(highest(score, num, 7)) == wanted


@pytest.mark.parametrize("choose", [smallest, by_sorting])
def test_of_equal_ones_the_first(choose):
    size = torch.tensor([3.0, 1.0, 2.0, 1.0, 2.0, torch.inf, 2.0])
    for num, wanted in enumerate([[], [1], [1, 3], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 6]]):
        assert where(choose(size, num)) == wanted
    assert where(choose(size, 7)) == [0, 1, 2, 3, 4, 5, 6]
    assert where(choose(size[:0], 0)) == []
    assert where(largest(size, 3)) == [0, 2, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_way_of_a_cpu_and_that_of_a_gpu_choose_the_same(dtype):
    rng = torch.Generator().manual_seed(0)
    size = torch.randint(0, 9, (400,), generator=rng).to(dtype)
    size[::50] = torch.nan  # what is no number comes last
    for num in (0, 1, 7, 50, 199, 391, 392, 393, 400):
        chosen = smallest(size, num)
        assert torch.equal(chosen, by_sorting(size, num)) and int(chosen.sum()) == num


def test_relative_importance():
    """Share of the row's sum and of the column's: by hand for [[1, 2], [3, 4]]."""
    live = torch.ones(4, dtype=torch.bool)
    choice = LayerView("w", torch.Size((2, 2)), 0, live, torch.tensor([1.0, -2.0, 3.0, 4.0]))
    found = Chts(ChtsConfig()).score(choice)
    assert found.tolist() == pytest.approx([0.58334, 1.00001, 1.17858, 1.23811], abs=1e-5)
    assert all(a < b for a, b in pairwise(found.tolist()))
    plain = Chts(ChtsConfig(removal="magnitude")).score(choice)
    assert plain.tolist() == [1.0, 2.0, 3.0, 4.0]
