"""The share of a step that goes to collectives: intervals by hand, and which steps are traced."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecl import dist
from sparsecl.engine.observe import communication
from sparsecl.engine.observe.communication import (
    WINDOW,
    Event,
    Sampler,
    Shares,
    intersection,
    shares,
    total,
    union,
)
from sparsecl.engine.speed_config import ProfileConfig, SpeedConfig


@pytest.mark.parametrize(
    ("intervals", "joined"),
    [
        ([], []),
        ([(3, 3)], []),
        ([(5, 7), (0, 2)], [(0, 2), (5, 7)]),
        ([(0, 2), (2, 4)], [(0, 4)]),  # they touch
        ([(0, 9), (1, 2), (8, 11)], [(0, 11)]),  # one inside another
        ([(0, 2), (2, 2), (3, 4)], [(0, 2), (3, 4)]),
    ],
)
def test_union(intervals, joined):
    assert union(intervals) == joined


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ([(0, 4)], [], []),
        ([(0, 4)], [(4, 8)], []),  # they only touch
        ([(0, 4)], [(2, 8)], [(2, 4)]),
        ([(0, 10)], [(1, 2), (4, 5), (9, 12)], [(1, 2), (4, 5), (9, 10)]),
        ([(0, 3), (5, 8)], [(2, 6)], [(2, 3), (5, 6)]),
    ],
)
def test_intersection(one, other, common):
    assert intersection(one, other) == common
    assert intersection(other, one) == common


intervals = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6)


@given(intervals, intervals)
def test_they_are_union_and_intersection_of_sets(one, other):
    def points(spans):
        return {point for begin, end in spans for point in range(begin, end)}

    first, second = union(one), union(other)
    assert points(first) == points(one) and total(first) == len(points(one))
    assert points(intersection(first, second)) == points(one) & points(other)


def test_shares_of_gloo_by_hand():
    """100 ns; collectives in [10, 40) and [50, 90), operators in [0, 20) and [60, 70)."""
    events = [
        Event("aten::mm", (0, 20)),
        Event("aten::copy_", (60, 70)),
        Event("aten::copy_", (200, 300)),  # after the step
        Event("c10d::allreduce_", (10, 12)),  # the call, not the work
        Event("gloo:all_reduce", (10, 40), is_label=True),
        Event("gloo:all_gather", (50, 80), is_label=True),
        Event("gloo:all_gather", (70, 90), is_label=True),
        Event("gloo:all_reduce", (95, 400)),  # cut at the end of the step
        Event(WINDOW, (0, 100), is_label=True),
    ]
    assert shares(events) == Shares(in_flight=0.75, exposed=0.55)


def test_shares_of_nccl_by_hand():
    """Only the device counts: what the host does beside it hides nothing."""
    events = [
        Event(WINDOW, (0, 100), is_label=True),
        Event(WINDOW, (0, 90), on_device=True, is_label=True),
        Event("aten::mm", (0, 100)),
        Event("nccl:all_reduce", (0, 100), is_label=True),  # on the host: until it is queued
        Event("ncclDevKernel_AllReduce_Sum_f32", (20, 60), on_device=True),
        Event("nccl:all_reduce", (20, 60), on_device=True, is_label=True),
        Event("sm90_xmma_gemm", (10, 30), on_device=True),
        Event("Memcpy HtoD (Pinned -> Device)", (30, 50), on_device=True),
        Event("a name of DeepSpeed's", (0, 100), on_device=True, is_label=True),
    ]
    assert shares(events) == Shares(in_flight=0.4, exposed=0.3)


def test_a_trace_without_its_step_tells_nothing():
    assert shares([Event("gloo:all_reduce", (0, 10))]) is None


def due(sampler: Sampler, numbers: range) -> list[int]:
    """The steps that would be traced."""
    found = []
    for number in numbers:
        sampler._steps += 1
        found += [number] if sampler.is_due(number) else []
    return found


def test_which_steps_are_traced(monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    sampler = Sampler(4, None)
    assert due(sampler, range(11, 21)) == [13, 17]
    sampler.begin_phase()
    assert due(sampler, range(21, 27)) == [23]
    assert due(Sampler(4, ProfileConfig(first=12, steps=2)), range(11, 21)) == [17]  # one at a time
    assert due(Sampler(0, None), range(1, 9)) == []
    monkeypatch.setattr(dist, "world_size", lambda: 1)
    assert due(Sampler(1, None), range(1, 9)) == []


def test_a_negative_interval_is_refused():
    with pytest.raises(ValueError, match="^sample_every must be >= 0, got -1"):
        SpeedConfig(sample_every=-1)


def walk(sampler: Sampler, number: int) -> list[float]:
    with sampler.step(number) as cost:
        torch.ones(8, 8) @ torch.ones(8, 8)
    return cost


def test_a_traced_step_without_collectives_has_none(monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    sampler = Sampler(1000, None)
    costs = [walk(sampler, number) for number in range(1, 5)]
    assert [len(cost) for cost in costs] == [0, 0, 2, 0] and min(costs[2]) > 0.0
    assert sampler.take() == (0.0, 0.0)
    assert sampler.take() != sampler.take()  # NaN: nothing new


@pytest.fixture
def sampler(monkeypatch) -> Sampler:
    """Every step is due."""
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(communication, "FIRST", 1)
    return Sampler(1, None)


def test_another_profiler_is_left_alone(sampler):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as other:
        assert walk(sampler, 1) == []
    assert "aten::mm" in {event.name for event in other.events()}
    assert len(walk(sampler, 2)) == 2


def test_a_profiler_that_does_not_start_is_never_tried_again(sampler, monkeypatch, capsys):
    def refuse():
        raise RuntimeError("CUPTI is busy\nsecond line")

    monkeypatch.setattr(communication, "new_profiler", lambda: SimpleNamespace(start=refuse))
    assert [walk(sampler, number) for number in (1, 2)] == [[], []]
    warning = "sparsecl: warning: communication is not measured: CUPTI is busy\n"
    assert capsys.readouterr().err == warning


def test_a_step_that_fails_leaves_no_profiler_behind(sampler):
    with pytest.raises(ZeroDivisionError), sampler.step(1):
        _ = 1 // 0
    assert len(walk(sampler, 2)) == 2
