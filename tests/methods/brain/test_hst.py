"""HST by hand: when it sleeps, what it reads then, and which weights shrink."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.config import digest
from sparsecl.methods.brain.config import HstConfig
from sparsecl.methods.brain.hst import Hst
from sparsecl.methods.cl.config import ReplayConfig
from sparsecl.methods.config import MethodsConfig
from sparsecl.methods.dst.config import SetConfig
from tests.methods.plain import FACTS, PlainContext, batch

WEIGHTS = [0.1, -0.8, 0.3, 0.4, -0.2, 0.7, -0.6, 0.5]


class Model(nn.Module):
    """One linear of eight weights, and a norm."""

    topology = None

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(4, 2, bias=False), nn.Parameter(torch.ones(2))
        self.up.weight.data = torch.tensor(WEIGHTS).view(2, 4)

    def linears(self) -> dict[str, Any]:
        return {"up": self}


def begin(**options: Any) -> tuple[Hst, Model, PlainContext, torch.optim.Optimizer]:
    method, model = (
        Hst(HstConfig(**{"every": 4, "sleep": 0.5, "sequences": 12, **options})),
        Model(),
    )
    method.attach(model, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return method, model, PlainContext(model, optimizer, [method]), optimizer


def step(run: Any, *, applied: bool = True) -> list[list[int]]:
    """One step of four new sequences; what was read, by name."""
    method, model, context, optimizer = run
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    method.step_start(context)
    new = batch(np.zeros((4, 2), np.int64), context.progress.phase, 4 * context.progress.data_step)
    found = method.batch(context, new)
    assert found.plain and found.rows.shape == new.rows.shape
    for row, (phase, number) in zip(found.rows, found.origin, strict=True):
        assert row[0] in (0, 100 * phase + number)  # the tokens of that name, or of the new rows
    context.step(optimizer, applied=applied)
    return found.origin.tolist()


def test_half_of_a_cycle_of_four_is_sleep():
    """It reads what it has read awake, once more; what is new then is passed over."""
    run, awake = begin(), []
    for at in range(8):
        read = step(run)
        if at % 4 < 2:
            assert read == [[0, 4 * at + i] for i in range(4)]
            awake += read
        else:
            assert all(name in awake for name in read)
    method = run[0]
    assert sorted(method.reservoir.names.tolist()) != [] and method.reservoir.num_seen == 16
    assert method.replayed_sequences == 16 and method.replayed_by_phase == [16]


def test_the_weak_shrink_at_the_end_of_a_cycle():
    """k = 2 of 8 are spared, 0.8 and 0.7; the norm is no synapse."""
    run = begin(sleep=0.0, down_scaling=0.25, protected=0.25)
    model = run[1]
    for _ in range(3):
        step(run)
        assert model.up.weight.view(-1).tolist() == torch.tensor(WEIGHTS).tolist()
    step(run)
    weak = torch.tensor(WEIGHTS).abs() < 0.65
    expected = torch.where(weak, torch.tensor(WEIGHTS) * 0.75, torch.tensor(WEIGHTS))
    assert model.up.weight.view(-1).equal(expected) and model.norm.eq(1.0).all()


def test_what_stands_out_does_so_the_more():
    """The ratio of a spared weight to another grows by 1 / (1 - amount) each time."""
    run = begin(every=1, sleep=0.0, down_scaling=0.1, protected=0.125)
    for at in range(4):
        weight = run[1].up.weight.detach().view(-1)
        assert float(weight[1] / weight[5]) == pytest.approx(-0.8 / 0.7 / 0.9**at)
        step(run)


@pytest.mark.parametrize(("protected", "num"), [(0.0, 8), (0.5, 4), (1.0, 0)])
def test_how_many_shrink(protected, num):
    run = begin(every=1, sleep=0.0, down_scaling=0.5, protected=protected)
    step(run)
    assert int((run[1].up.weight.view(-1) != torch.tensor(WEIGHTS)).sum()) == num


def test_both_switches_off_change_nothing():
    run = begin(sleep=0.0, down_scaling=0.0)
    for at in range(5):
        assert step(run) == [[0, 4 * at + i] for i in range(4)]
    assert run[1].up.weight.view(-1).equal(torch.tensor(WEIGHTS))
    assert run[0].state_dict()[1] == Hst(HstConfig()).state_dict()[1]


def test_whoever_has_read_nothing_stays_awake():
    run = begin()
    step(run, applied=False)
    step(run, applied=False)
    run[2].at(2, data_step=2)
    assert step(run) == [[0, 8 + i] for i in range(4)]


def test_a_discarded_sleep_step_leaves_no_trace_and_state_comes_back():
    run = begin()
    for _ in range(2):
        step(run)
    before = json.dumps(run[0].state_dict()[1])
    step(run, applied=False)
    assert json.dumps(run[0].state_dict()[1]) == before
    other = begin()
    other[0].load_state_dict({}, json.loads(before))
    for _ in range(3):
        run[2].at(3, data_step=3), other[2].at(3, data_step=3)
        assert step(run) == step(other)


@pytest.mark.parametrize("every", [1, 2])
def test_sleep_is_a_whole_step_or_none(every):
    with pytest.raises(ValueError, match=rf"sleep=0.2 of every={every} steps is 0 of them"):
        HstConfig(every=every).check(FACTS)
    HstConfig(every=every, sleep=0.0).check(FACTS)


def test_who_asks_for_new_sequences_is_refused():
    with pytest.raises(ValueError, match="methods.replay asks every step for its new sequences"):
        HstConfig().check(replace(FACTS, others=("replay",)))
    HstConfig(sleep=0.0).check(replace(FACTS, others=("replay",)))


def test_sixteen_configs():
    """Every subset of the four switches is a config of its own, and all stand side by side."""
    digests = {
        digest((density, MethodsConfig(hst=hst, set=rewiring)))
        for density in (0.1, 0.9)
        for rewiring in (None, SetConfig())
        for hst in (
            None,
            HstConfig(down_scaling=0.0),
            HstConfig(sleep=0.0),
            HstConfig(),
        )
    }
    assert len(digests) == 16
    both = MethodsConfig(hst=HstConfig(), set=SetConfig())
    assert both.rewires and both.replayed_share == 0.0 and both.reread_share == 0.2
    assert MethodsConfig(replay=ReplayConfig()).replayed_share == 0.25
