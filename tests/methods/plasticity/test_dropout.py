"""Dropout by hand: who is silent, for whom, and when."""

import numpy as np
import pytest
import torch

from sparsecl.methods.context import Batch
from sparsecl.methods.plasticity.config import DropoutConfig
from sparsecl.methods.plasticity.dropout import Dropout
from tests.methods.plain import PlainContext, batch
from tests.methods.plasticity.mlp import Mlp


class Problem:
    """An MLP of many units whose every weight is 1, and dropout on it."""

    def __init__(self, p: float, units: int = 1000) -> None:
        self.model = Mlp(1, units, 1)
        for param in self.model.parameters():
            param.data.fill_(1.0)
        self.dropout = Dropout(DropoutConfig(p=p))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.context = PlainContext(self.model, optimizer, [self.dropout])

    def hidden(self, given: Batch) -> torch.Tensor:
        """What the units say to rows of ones, [B, n]."""
        assert self.dropout.batch(self.context, given) is given
        return self.model.units(torch.ones(len(given.rows), self.model.units.num_units))


def rows(num: int, **origin: int) -> Batch:
    return batch(np.ones((num, 2), dtype=np.int64), **origin)


def test_the_share_p_is_silent_and_the_mean_stays():
    found = Problem(0.3).hidden(rows(40))
    assert found.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert float((found == 0).float().mean()) == pytest.approx(0.3, abs=0.01)  # 4 sigma
    # Neither units nor rows go together.
    apart = (found == 0).float() - 0.3
    assert abs(float((apart[:, 1:] * apart[:, :-1]).mean())) < 0.005
    assert abs(float((apart[1:] * apart[:-1]).mean())) < 0.005


def test_a_draw_belongs_to_step_and_sequence_wherever_it_is_read():
    problem = Problem(0.5)
    four = problem.hidden(rows(4))
    assert problem.hidden(rows(2, first=2)).equal(four[2:])
    assert not problem.hidden(rows(4, phase=1)).equal(four)
    problem.context.at(1)
    assert not problem.hidden(rows(4)).equal(four)
    problem.context.at(0)
    assert problem.hidden(rows(4)).equal(four)


def test_a_position_has_the_draw_of_its_sequence():
    problem = Problem(0.5, units=8)
    of_rows = problem.hidden(rows(3))
    units = problem.model.units
    every = units(torch.ones(3, 5, 8))
    assert every.equal(of_rows[:, None].expand(3, 5, 8))
    assert units(torch.ones(5, 3, 8), True).equal(every.transpose(0, 1))


def test_passes_that_are_not_the_steps_have_all_units():
    problem = Problem(0.5)
    problem.hidden(rows(2))
    x, plain = torch.rand(2, 1), Problem(0.0).model
    assert not problem.model(x).equal(plain(x))
    assert problem.model.eval()(x).equal(plain(x))
    problem.model.train()
    problem.context.after_backward()
    assert problem.model(torch.ones(7, 1)).equal(plain(torch.ones(7, 1)))


def test_at_zero_nothing_is_drawn():
    problem = Problem(0.0)
    assert problem.hidden(rows(3)).eq(1.0).all() and not problem.model.units.thinned


def test_the_tap_sees_what_a_silent_unit_would_say():
    problem = Problem(0.5)
    problem.context.arm_units()
    problem.hidden(rows(4))
    problem.context.after_backward()
    (figures,) = problem.context.unit_figures().values()
    assert figures.mean_abs.eq(1.0).all()


def test_ranges():
    with pytest.raises(ValueError, match="p must be"):
        DropoutConfig(p=1.0)
