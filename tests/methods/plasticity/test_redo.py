"""ReDo by hand: who is dormant, and what becomes of it (methods.md 8.3)."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sparsecl.methods.plasticity.config import RedoConfig
from sparsecl.methods.plasticity.redo import Redo
from tests.methods.plain import FACTS, PlainContext
from tests.methods.plasticity.mlp import FRESH, Mlp, given

OUT = [[0.5, 4.0, 0.1]]
IN = [[1.0, 0.0], [1.0, 2.0], [1.0, 3.0]]


class Problem:
    """An MLP with given weights, and ReDo on it."""

    def __init__(self, model: Mlp, **options: Any) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
        self.redo = Redo(RedoConfig(**options))
        self.context = PlainContext(model, self.optimizer, [self.redo])

    def step(self, *h: float, applied: bool = True) -> list[bool]:
        """Which units have begun anew."""
        self.optimizer.zero_grad()
        self.redo.step_start(self.context)
        self.model(torch.tensor([h])).square().sum().backward()
        self.context.step(self.optimizer, applied=applied)
        return (self.model.fc2.weight == 0).all(0).tolist()


def test_a_unit_of_a_low_share_of_its_layers_mean_begins_anew():
    """Scores of |h| = 1, .1, 2 are .968, .097, 1.935, however large the outgoing weights are."""
    problem = Problem(given(OUT, IN), every=2, tau=0.1)
    assert problem.step(1.0, 0.1, 2.0) == [False, False, False]  # not yet
    assert problem.step(1.0, -0.1, 2.0) == [False, True, False]
    assert problem.model.fc1.weight.tolist() == [[1.0, 0.0], [FRESH, FRESH], [1.0, 3.0]]
    assert problem.redo.num_replaced == 1


def test_at_tau_zero_only_the_silent_begin_anew():
    assert Problem(given(OUT, IN), every=1, tau=0.0).step(1e-9, 0.0, 2.0) == [False, True, False]


def test_in_a_silent_layer_all_begin_anew_but_those_that_nothing_feeds():
    problem = Problem(given(OUT, [[0.0, 0.0], *IN[1:]]), every=1)
    assert problem.step(0.0, 0.0, 0.0) == [False, True, True]


@pytest.mark.parametrize("moments", ["reset", "keep"])
def test_moments_are_reset_or_stay(moments):
    problem = Problem(given(OUT, IN), every=2, moments=moments)
    problem.step(1.0, 0.01, 2.0)
    problem.step(1.0, 0.01, 2.0)
    item = problem.context.slices.find("fc2.weight")
    first = problem.context.slices.moments(item)["exp_avg"]
    assert (first != 0).tolist() == [True, moments == "keep", True]


def test_a_discarded_step_changes_nothing():
    problem = Problem(given(OUT, IN), every=1)
    assert problem.step(1.0, 0.0, 2.0, applied=False) == [False, False, False]
    assert problem.redo.state_dict() == ({}, {"num_replaced": 0})


def test_what_cannot_be_is_refused():
    redo = Redo(RedoConfig())
    redo.check_state([], {"num_replaced": 3})
    redo.load_state_dict({}, {"num_replaced": 3})
    assert redo.state_dict()[1] == {"num_replaced": 3}
    with pytest.raises(ValueError, match="num_replaced: -1 is no count"):
        redo.check_state([], {"num_replaced": -1})
    with pytest.raises(ValueError, match="use moments=reset"):
        RedoConfig(moments="keep", adam_restart="per_weight")
    with pytest.raises(ValueError, match="every must be"):
        RedoConfig(every=0)
    with pytest.raises(ValueError, match="that packnet freezes"):
        RedoConfig().check(replace(FACTS, freezing=("packnet",)))
