"""What the ranks measure: clocks and sums by hand, then two ranks of which one waits for data."""

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsecl import dist
from sparsecl.engine.observe import stretch
from sparsecl.engine.observe.stretch import Report, StepClock, Stretch, peak_memory
from tests.distributed import cases

NAN = math.nan


@pytest.fixture
def clock() -> StepClock:
    made = StepClock(SimpleNamespace(wait_seconds=0.0))  # pyright: ignore[reportArgumentType]
    made.clock = lambda: made.now  # pyright: ignore
    made.now = 100.0  # pyright: ignore
    return made


def step(clock: Any, *, before: float, after: float, wait: float = 0.0, logged: bool = False):
    """One step; returns its seconds, and what `take` said within it."""
    clock.begin()
    clock.now += before
    clock._loader.wait_seconds += wait
    taken = clock.take() if logged else None
    clock.now += after
    return clock.end(), taken


def test_the_first_step_of_a_process_is_part_of_no_stretch(clock):
    assert step(clock, before=50.0, after=1.0, wait=9.0) == (51.0, None)
    clock.now += 1000.0  # an evaluation between two steps
    assert step(clock, before=2.0, after=0.5, wait=0.25) == (2.5, None)
    # What a step does after the point at which it was taken belongs to the next stretch.
    assert step(clock, before=3.0, after=0.5, wait=0.5, logged=True) == (3.5, (2, 5.5, 0.75))
    assert step(clock, before=2.0, after=0.0, logged=True) == (2.0, (1, 2.5, 0.0))


def test_what_is_no_work_is_left_out_of_step_and_stretch(clock):
    step(clock, before=1.0, after=0.0)
    clock.begin()
    clock.now += 7.0
    clock.leave_out(4.0)
    assert clock.take() == (1, 3.0, 0.0)
    clock.now += 5.0
    clock.leave_out(4.0)
    assert clock.end() == 4.0


def test_a_step_that_was_rolled_back_leaves_no_time_behind(clock):
    step(clock, before=1.0, after=0.0)
    clock.begin()
    clock.now += 2.0
    assert clock.take() == (1, 2.0, 0.0)
    clock.now += 600.0  # an older checkpoint is read, and the step never ends
    assert step(clock, before=3.0, after=0.0, logged=True) == (3.0, (1, 3.0, 0.0))


def test_two_stretches_of_three_ranks_by_hand():
    found = Stretch()
    assert found.figures() == {}
    found.add(2, [Report(2.0, 0.5, 10.0, 20.0, 0.25, 0.125), Report(4.0, 0.0, 30.0, 40.0, NAN, NAN),
                  Report(3.0, 0.0, 5.0, 6.0, 0.75, 0.375)])  # fmt: skip
    found.add(2, [Report(2.0, 0.5, 11.0, 20.0, NAN, NAN)] + [Report(4.0, 0.0, 12.0, 1.0, NAN, NAN)]
              + [Report(3.0, 1.2, 5.0, 7.0, NAN, NAN)])  # fmt: skip
    assert found.figures() == {
        "ranks": 3,
        "step_seconds": {"min": 1.0, "median": 1.5, "max": 2.0},
        "loader_wait_share": 0.25,
        "communication_share": 0.5,
        "exposed_communication_share": 0.25,
        "peak_memory_bytes": 30,
    }
    assert [(rank.memory, rank.reserved) for rank in found.ranks] == [(11, 20), (30, 40), (5, 7)]
    assert found.tokens_per_second(64) == 64 * 4 / 8.0
    found.add(1, [Report(0.0, 0.0, 0.0, 0.0, 1.0, 1.0)] * 3)
    assert found.figures()["communication_share"] == 0.75  # of two samples


def test_peak_memory_of_a_process_grows_with_what_it_touches(monkeypatch):
    before, reserved = peak_memory()
    assert before > 20e6 and reserved == 0
    ballast = torch.ones(max(64, before // 2**20) * 2**18)
    after, _ = peak_memory()
    assert after >= before and after >= ballast.numel() * 4

    def no_file(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(stretch.Path, "read_text", no_file)
    assert peak_memory()[0] > 0.9 * after


def test_peak_memory_of_a_gpu_is_that_of_its_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 8)
    assert peak_memory() == (5, 8)


def monitored(cache: str, folder: str, *overrides: str) -> dict[str, Any]:
    """Twelve steps of which every fourth is logged; rank 1 reads its rows slowly, and waits."""
    overrides = ("phases.steps=12", "log.every=4", "speed.prefetch=0", *overrides)
    trainer, _, _ = cases.assemble(cases.load(cache, overrides), "zero2", folder)
    read, curves = trainer.loader._read, []

    def slow(place: Any) -> Any:
        time.sleep(0.1 * dist.rank())
        return read(place)

    trainer.loader._read = slow
    trainer.journal.scalars = lambda values, **_: curves.append(values)
    trainer.run()
    (end,) = [record for record in trainer.records if record["kind"] == "end"]
    return {
        "curves": [found for found in curves if "performance/step_seconds_max" in found],
        "performance": end["performance"],
        "train": [record["loss"] for record in trainer.records if record["kind"] == "train"],
        "weights": {i.name: i.master.clone() for i in trainer.slices},
        "useful": trainer.journal.clock.train_seconds,
    }


@pytest.mark.dist
def test_two_ranks_and_a_slow_loader(pool, shared_cache, tmp_path):
    peak = ("speed.sample_every=4", "speed.peak_tflops=0.001")
    one, other = pool.run(monitored, 2, str(shared_cache), str(tmp_path / "on"), *peak)
    plain = pool.run(monitored, 2, str(shared_cache), str(tmp_path / "off"))
    assert len(one["curves"]) == 3  # steps 4, 8 and 12; samples of steps 3, 7 and 11
    for points in one["curves"]:
        low, usual, high = (
            points[f"performance/step_seconds_{name}"] for name in ("min", "median", "max")
        )
        assert 0.1 < low <= usual <= high
        assert points["performance/tokens_per_second"] == pytest.approx(8 * 16 / high)
        assert 0.0 < points["time/loader_wait_share"] < 1.0
        assert points["time/loader_wait_share"] >= 0.1 / high * 0.9
        assert points["time/communication_share"] > 0.0
        assert (
            points["time/communication_share"] >= points["time/exposed_communication_share"] >= 0.0
        )
        assert 0.0 < points["memory/peak_gib_min"] <= points["memory/peak_gib_max"]
    figures = one["performance"]
    # Figures of ranks are the same everywhere; only rank 0 knows of attempts, and has a folder.
    same = ("step_seconds", "loader_wait_share", "communication_share", "peak_memory_bytes")
    assert [figures[name] for name in same] == [other["performance"][name] for name in same]
    assert 0.0 < figures["communication_share"] <= 1.0
    assert one["useful"] > 11 * figures["step_seconds"]["min"]
    assert figures["mfu"] > 0.0 and "goodput" not in figures
    # Looking changes nothing.
    for rank, found in enumerate((one, other)):
        assert found["train"] == plain[rank]["train"]
        for name, weight in found["weights"].items():
            assert weight.equal(plain[rank]["weights"][name])
    assert plain[0]["performance"]["communication_share"] is None
    assert plain[0]["performance"]["mfu"] is None
    assert all("time/communication_share" not in points for points in plain[0]["curves"])
