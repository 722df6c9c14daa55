"""Replay: who is remembered, who is drawn, and what a micro-batch then holds.

Here sequence n of phase p is the row [100 p + n, 100 p + n] wherever tokens are read.
"""

import itertools
import json
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from sparsecl import seeding
from sparsecl.methods.cl import again as module
from sparsecl.methods.cl.config import ReplayConfig
from sparsecl.methods.cl.replay import Replay
from sparsecl.methods.cl.reservoir import Reservoir
from sparsecl.methods.context import Batch
from sparsecl.methods.several import Methods
from tests.methods.plain import PlainContext, batch


class Dice:
    """A generator that gives what it is told: for t = first, first + 1, .. one value below t."""

    def __init__(self, values: list[int], first: int = 1) -> None:
        self.values, self.first = values, first

    def integers(self, low: int, high: Any) -> Any:
        assert low == 0 and high.tolist() == [self.first + i for i in range(len(self.values))]
        return np.array(self.values)


def names(*numbers: int) -> Any:
    return np.array([(0, number) for number in numbers], dtype=np.int64).reshape(-1, 2)


def context(step: int, **progress: Any) -> Any:
    weight = nn.Parameter(torch.zeros(1))
    return PlainContext(weight, torch.optim.SGD([weight], lr=0.1)).at(step, **progress)


def new_rows(here: Any, first: int, num: int = 4) -> Batch:
    """Sequences that are new in this step, whose tokens are `first`, `first + 1`, .."""
    rows = np.stack([np.arange(first, first + num)] * 2, axis=1)
    return batch(rows, phase=here.progress.phase, first=here.progress.data_step * 4)


def trained_rows(method: Replay, here: Any, first: int, num: int = 4) -> Any:
    """The rows of a micro-batch [B, 2] with what is replayed."""
    return method.batch(here, new_rows(here, first, num)).rows


@pytest.mark.parametrize("step", [1, 2, 4])
def test_slots_by_hand(step):
    """B = 2: names 10 and 11 fill it; 12 draws j = 1 and replaces 11; 13 draws j = 2 and goes."""
    reservoir = Reservoir(2)
    stream, dice = [10, 11, 12, 13], [0, 0, 1, 2]
    for i in range(0, 4, step):
        rng: Any = Dice(dice[i : i + step], first=i + 1)
        reservoir.insert(names(*stream[i : i + step]), rng)
    assert reservoir.names.tolist() == [[0, 10], [0, 12]]
    assert reservoir.num_seen == 4


def test_each_pair_is_equally_likely_by_enumeration():
    """B = 2, a stream of 4: all 3 * 4 draws of j for t = 3 and 4, of equal weight."""
    pairs: Counter[tuple[int, ...]] = Counter()
    for third, fourth in itertools.product(range(3), range(4)):
        reservoir, rng = Reservoir(2), Dice([0, 0, third, fourth])
        reservoir.insert(names(0, 1, 2, 3), cast(Any, rng))
        pairs[tuple(sorted(reservoir.names[:, 1].tolist()))] += 1
    assert pairs == {pair: 2 for pair in itertools.combinations(range(4), 2)}


@pytest.mark.parametrize("chunk", [1, 16])
def test_long_streams_are_remembered_uniformly(chunk):
    """B = 8, t = 64: each name is present with probability 1/8, whatever comes in one call."""
    runs, num, capacity = 400, 64, 8
    present = np.zeros(num)
    for run in range(runs):
        reservoir, rng = Reservoir(capacity), seeding.stream(run, "test")
        for start in range(0, num, chunk):
            reservoir.insert(names(*range(start, start + chunk)), rng)
        found = reservoir.names[:, 1]
        assert len(np.unique(found)) == capacity
        present[found] += 1
    expected = runs * capacity / num
    # Within a run names exclude one another, which shrinks the variance by 1 - B/t.
    chi_square = ((present - expected) ** 2 / expected).sum() / (1 - capacity / num)
    assert stats.chi2.sf(chi_square, num - 1) > 1e-3


def test_draws_are_uniform_over_filled_slots():
    reservoir = Reservoir(10)
    reservoir.insert(names(3, 4, 5, 6), seeding.stream(0, "insert"))
    drawn = reservoir.draw(4000, seeding.stream(0, "draw"))[:, 1]
    counts = np.bincount(drawn, minlength=7)
    assert counts[:3].sum() == 0
    assert stats.chisquare(counts[3:]).pvalue > 1e-3


def test_an_empty_memory_changes_nothing():
    method = Replay(ReplayConfig(share=0.5))
    new = new_rows(context(0), 0)
    assert method.batch(context(0), new) is new
    assert method.replayed_sequences == 0


def test_replayed_rows_are_rows_trained_before():
    """Three steps of 4 in phase 0, then two in phase 2; half as many again are replayed."""
    method, seen, replayed = Replay(ReplayConfig(sequences=6, share=0.5)), set(), 0
    for step in range(5):
        phase, phase_step = (0, step) if step < 3 else (2, step - 3)
        here = context(step, phase=phase, data_step=phase_step)
        new = new_rows(here, 100 * phase + 4 * phase_step)
        method.step_start(here)
        found = method.batch(here, new)
        assert found.rows[:4].tolist() == new.rows.tolist() and found.plain
        assert len(found.rows) == len(found.origin) == (6 if step else 4)
        assert set(found.rows[4:, 0]) <= seen
        assert (found.origin[4:] @ [100, 1]).tolist() == found.rows[4:, 0].tolist()
        replayed += len(found.rows) - 4
        there = context(step + 1, phase=phase, data_step=phase_step + 1)
        method.after_step(there, applied=True)
        seen |= set(new.rows[:, 0].tolist())
    assert method.replayed_sequences == replayed == 8
    assert Methods([method]).replayed_sequences == 8
    assert method.reservoir.num_seen == 20


def filled(**options: Any) -> Replay:
    """A memory of phases 0 and 1, after two steps in each."""
    method = Replay(ReplayConfig(**{"sequences": 12, "share": 0.5, **options}))
    for step in range(4):
        here = context(step + 1, phase=step // 2, data_step=step % 2 + 1)
        method.after_step(here, applied=True)
    return method


def test_tokens_stand_in_the_order_drawn():
    """Names of several phases are read phase by phase, and put back where they were drawn."""
    found = module.read(context(4), np.array([[1, 5], [0, 2], [1, 0], [0, 7], [1, 5]]))
    assert found[:, 0].tolist() == [105, 2, 100, 7, 105]


def test_all_layouts_replay_the_same_sequences(monkeypatch):
    """16 new sequences in a step: dp_size * micro-steps * micro, in that nesting."""

    def replayed(dp_size: int, num_micro_steps: int) -> list[int]:
        micro, found = 16 // dp_size // num_micro_steps, []
        monkeypatch.setattr(module.dist, "dp_size", lambda: dp_size)
        for micro_step in range(num_micro_steps):
            for rank in range(dp_size):
                monkeypatch.setattr(module.dist, "dp_rank", lambda rank=rank: rank)
                here = context(4, micro_step=micro_step, num_micro_steps=num_micro_steps)
                here.batch_sequences, here.progress = 16, replace(here.progress, data_step=0)
                found += trained_rows(filled(), here, 300, micro)[micro:, 0].tolist()
        return found

    alone = replayed(1, 1)
    assert len(alone) == 8 and len(set(alone)) > 1
    assert replayed(2, 1) == replayed(1, 4) == replayed(4, 2) == alone


def test_draws_depend_on_the_step_alone():
    rows = [trained_rows(filled(), context(step), 300)[:, 0].tolist() for step in (4, 4, 5)]
    assert rows[0] == rows[1] != rows[2]


def test_rows_that_another_method_has_added_are_not_new():
    here = context(4)
    new = new_rows(here, 300)
    both = new.joined(np.zeros((4, 2), np.int64), names(0, 1, 2, 3))
    alone, beside = (filled().batch(here, found).rows.tolist() for found in (new, both))
    assert len(alone) == 4 + 2 and len(beside) == 8 + 2
    assert beside[8:] == alone[4:]


def test_state_goes_and_comes_back():
    method = filled()
    method.batch(context(4), new_rows(context(4), 300))
    method.after_step(context(5), applied=True)
    tensors, values = method.state_dict()
    assert tensors == {}
    other = Replay(method.config)
    other.load_state_dict({}, json.loads(json.dumps(values)))
    assert other.replayed_sequences == 2 == sum(other.replayed_by_phase)
    older = {key: value for key, value in values.items() if key != "by_phase"}
    other.check_state((), older)  # of an earlier version
    for step in (5, 6):
        trained = []
        for m in (method, other):
            m.step_start(context(step))
            trained.append(trained_rows(m, context(step), 300).tolist())
            m.after_step(context(step + 1), applied=True)
        assert trained[0] == trained[1]
    assert method.state_dict() == other.state_dict()


def test_an_empty_state_comes_back_too():
    method = Replay(ReplayConfig())
    other = Replay(ReplayConfig())
    other.load_state_dict(*method.state_dict())
    other.after_step(context(1), applied=True)
    assert other.reservoir.names.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]


def test_a_discarded_step_leaves_no_trace():
    method = filled()
    before = json.dumps(method.state_dict()[1])
    method.step_start(context(4))
    method.batch(context(4), new_rows(context(4), 300))
    method.after_step(context(5), applied=False)
    assert json.dumps(method.state_dict()[1]) == before


@pytest.mark.parametrize(
    ("share", "micro", "num"), [(0.25, 8, 2), (1.0, 3, 3), (0.01, 100, 1), (0.333333, 3, 1)]
)
def test_whole_shares(share, micro, num):
    assert ReplayConfig(share=share).num_replayed(micro) == num


@pytest.mark.parametrize(
    ("share", "micro", "message"),
    [
        (0.3, 4, "share=0.3 of the 4 sequences of a micro-batch is 1.2,.* Use share 0.25 or 0.5,"),
        (0.25, 1, "is 0.25, not a whole number >= 1. Use share 1, or another batch.micro"),
        (0.01, 7, "Use share 0.142857,"),
    ],
)
def test_a_share_that_does_not_fit_names_those_that_do(share, micro, message):
    with pytest.raises(ValueError, match=message):
        ReplayConfig(share=share).num_replayed(micro)


@pytest.mark.parametrize("micro", range(1, 41))
def test_the_shares_in_the_message_work(micro):
    with pytest.raises(ValueError) as caught:
        ReplayConfig(share=1.5 / micro).num_replayed(micro)
    offered = str(caught.value).split("Use share ")[1].split(", or another")[0].split(" or ")
    assert [ReplayConfig(share=float(s)).num_replayed(micro) for s in offered] == [1, 2]


@pytest.mark.parametrize(
    "values", [{"sequences": 0}, {"share": 0.0}, {"share": float("nan")}, {"share": float("inf")}]
)
def test_ranges(values):
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be"):
        ReplayConfig(**values)
