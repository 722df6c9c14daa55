"""SET: what is dropped, what grows, and how much."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.methods.dst.base import LayerView
from sparsecl.methods.dst.config import SetConfig
from sparsecl.methods.dst.set import Set
from sparsecl.methods.facts import RunFacts
from tests.methods.plain import START


def view(live: torch.Tensor, values: torch.Tensor) -> LayerView:
    return LayerView("w", torch.Size((1, len(live))), 0, live, values)


def dropped(values: torch.Tensor, **options: Any) -> list[int]:
    live = torch.ones(2 * len(values), dtype=torch.bool)
    live[len(values) :] = False
    choice = view(live, values)
    gone = Set(SetConfig(**options)).drop(context(0), choice)
    return gone.nonzero().view(-1).tolist()


def test_the_weakest_of_each_sign_go():
    values = torch.tensor([0.5, -0.1, 0.2, -3.0, 0.1, -0.4, 2.0, -0.2])
    assert sorted(dropped(values, drop_fraction=0.5)) == [1, 2, 4, 7]  # 0.1, 0.2; -0.1, -0.2


def test_the_vectors_of_the_public_code():
    """With weights of another size on each side the weakest of all would be 0.1 and 0.2."""
    first = torch.tensor([0.1, 0.2, 0.3, 0.4, -0.05, -0.5, -0.6, -0.7])
    assert dropped(first, drop_fraction=0.25) == [0, 4]
    second = torch.tensor([0.1, 0.2, 0.3, 0.4, -1.0, -2.0, -3.0, -4.0])
    assert dropped(second, drop_fraction=0.25) == [0, 4]
    assert dropped(second, drop_fraction=0.25, drop="magnitude") == [0, 1]


def test_signs_count_apart():
    """One negative weight among many positive ones stays, however small: floor(0.3 * 1) = 0."""
    values = torch.cat([torch.linspace(1, 2, 10), torch.tensor([-0.001])])
    assert dropped(values, drop_fraction=0.3) == [0, 1, 2]


def test_fraction_zero_is_the_identity():
    assert dropped(torch.randn(20), drop_fraction=0.0) == []


def context(step: int) -> Any:
    return SimpleNamespace(
        progress=replace(START, step=step, total_steps=1000),
        generator=lambda *names: np.random.default_rng(abs(hash(names)) % 2**32),
    )


def grown(step: int, live: torch.Tensor, num: int) -> torch.Tensor:
    choice = view(live, torch.zeros(int(live.sum())))
    return Set(SetConfig()).grow(context(step), choice, torch.arange(num))


def test_growth_is_uniform_over_absent_cells():
    live = torch.arange(120) < 100
    counts = torch.zeros(120)
    for step in range(400):
        new = grown(step, live, 5)
        assert new.unique().numel() == 5
        counts[new] += 1
    assert counts[:100].sum() == 0
    assert 60 < counts[100:].min() and counts[100:].max() < 145  # 100 +- 4.6 sd


def test_no_more_grows_than_there_is_room():
    live = torch.ones(10, dtype=torch.bool)
    live[[3, 9]] = False
    assert sorted(grown(0, live, 5).tolist()) == [3, 9]


@pytest.mark.parametrize("fields", [{"every": 0}, {"drop_fraction": 1.0}, {"drop_fraction": -0.1}])
def test_bad_options(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        SetConfig(**fields)


FACTS = {
    "dense": False,
    "role": "topology",
    "storage": "packed",
    "joint": False,
    "num_phases": 2,
    "micro": 4,
    "layers": (),
    "optimizer": "adamw",
    "others": (),
}


@pytest.mark.parametrize(
    ("facts", "way_out"),
    [
        ({"dense": True}, "topology.kind"),
        ({"role": "update"}, "role topology"),
        ({"tiled": True}, "backend dense, native or csr"),
        ({"freezing": ("other",)}, "other freezes weights"),
    ],
)
def test_a_run_without_weights_that_can_move(facts, way_out):
    SetConfig().check(RunFacts(**FACTS))
    with pytest.raises(ValueError, match=way_out):
        SetConfig().check(RunFacts(**{**FACTS, **facts}))
