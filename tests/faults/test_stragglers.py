"""A slow rank is named, once, and the run goes on as if nothing had been."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsecl import dist, faults
from sparsecl.engine.observe.stragglers import Stragglers
from tests.distributed import cases

SLOW = "health/slowest_rank_ratio"


class FakeJournal:
    """Keeps what is said and drawn."""

    def __init__(self) -> None:
        self.position = SimpleNamespace(phase=0, step=8)
        self.said: list[str] = []
        self.drawn: list[float] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def scalars(self, values: dict[str, float]) -> None:
        self.drawn.append(values[SLOW])


@pytest.fixture
def journal() -> FakeJournal:
    return FakeJournal()


def make(journal: Any, **options: Any) -> Stragglers:
    return Stragglers(journal, **{"forward_waits": False, **options})


@pytest.mark.fault("P12")
@pytest.mark.parametrize(
    ("seconds", "ratio", "rank"),
    [
        ([0.03, 0.01], 3.0, None),  # three times slower, but 20 ms are noise
        ([0.04, 0.01], 4.0, 0),
        ([0.10, 0.10, 0.10, 0.30], 3.0, 3),
        ([0.30, 0.10, 0.10], 3.0, 0),
        ([1.00, 1.40], 1.4, None),  # 0.4 s, but not far from the other
        ([0.30, 0.30, 0.10], 1.0, None),  # the usual is slow
    ],
)
def test_by_hand(journal, seconds, ratio, rank):
    make(journal)._judge(seconds)
    assert journal.drawn == [pytest.approx(ratio)]
    if rank is None:
        assert journal.said == []
    else:
        (line,) = journal.said
        assert f"step 8: rank {rank} is slow: {max(seconds):.3f} s" in line
        assert f"the usual is {min(seconds):.3f} s" in line


def test_a_rank_is_named_once_in_a_phase(journal):
    stragglers = make(journal)
    for phase in (0, 0, 1):
        journal.position.phase = phase
        stragglers._judge([0.5, 0.1])
    stragglers._judge([0.1, 0.5])
    assert [line.split("rank ")[1][0] for line in journal.said] == ["0", "0", "1"]
    assert len(journal.drawn) == 4


@pytest.mark.parametrize(("forward_waits", "own"), [(False, 3.0), (True, 2.0)])
def test_what_is_measured(journal, monkeypatch, forward_waits, own):
    """Two micro-batches a step: 1 s of data each, and 0.5 s forward if that is the rank's own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "rank", lambda: 1)
    asked: list[list[float]] = []
    monkeypatch.setattr(dist, "all_reduce", lambda t: asked.append(t.tolist()) or t + 1.0)
    now = 0.0
    stragglers = make(journal, forward_waits=forward_waits)
    stragglers.clock = lambda: now
    for step in range(4):
        for _ in range(2):
            with stragglers.data():
                now += 100.0 if step == 0 else 1.0  # the first step warms up
            with stragglers.forward():
                now += 0.5
            now += 50.0  # backward, and waiting for the other rank
        stragglers.step_done()
        if step in (0, 2):
            stragglers.compare()  # nothing to compare after the first
    assert asked == [[0.0, pytest.approx(own)]]
    stragglers.compare()
    assert asked[1] == [0.0, pytest.approx(own)]  # of the last step alone


class FakeEvent:
    """A mark in a device's stream, which is reached when the test says so."""

    now, reached = 0.0, False

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = FakeEvent.now

    def query(self) -> bool:
        return FakeEvent.reached

    def synchronize(self) -> None:
        FakeEvent.reached = True

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert FakeEvent.reached, "the device is not there yet"
        return 1000.0 * (end.at - self.at)


def test_a_device_is_asked_for_its_own_time_and_not_waited_for(journal, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "reached", False)
    stragglers = make(journal)
    for seconds in (9.0, 2.0, 3.0):
        with stragglers.forward():
            monkeypatch.setattr(FakeEvent, "now", FakeEvent.now + seconds)
        if seconds == 9.0:
            stragglers.step_done()  # the first step is thrown away, and may be waited for
            assert stragglers._seconds == 0.0
            FakeEvent.reached = False
    assert stragglers._seconds == 0.0 and len(stragglers._events) == 2
    stragglers.step_done()
    FakeEvent.reached = True
    with stragglers.forward():
        monkeypatch.setattr(FakeEvent, "now", FakeEvent.now + 1.0)
    assert stragglers._seconds == pytest.approx(6.0)
    assert not stragglers._events  # what is done is not kept, however seldom steps are logged


def slow_run(cache: str, specs: tuple[str, ...], folder: str) -> dict[str, Any]:
    """Eight steps with accumulation, logged every fourth.

    The clock moves by a hundredth at every look and by what a fault sleeps, on any machine.
    """
    now = 0.0

    def advance(seconds: float) -> float:
        nonlocal now
        now += seconds
        return now

    overrides = ("phases.steps=8", "log.every=4", "batch.micro=2")
    trainer, _, _ = cases.assemble(cases.load(cache, overrides), "zero2", folder)
    journal = FakeJournal()
    trainer.journal.say = journal.said.append
    trainer.journal.scalars = lambda values, **_: journal.drawn.extend(
        value for key, value in values.items() if key == SLOW
    )
    trainer.monitor.stragglers.clock = lambda: advance(0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "time", SimpleNamespace(sleep=advance))
        faults.arm(specs, seed=0, rank=dist.rank())
        trainer.run()
        faults.disarm()
    times = ("seconds", "tokens_per_second", "performance")
    kept = [{k: v for k, v in r.items() if k not in times} for r in trainer.records]
    return {"records": kept, "said": journal.said, "drawn": journal.drawn}


@pytest.mark.fault("P12")
@pytest.mark.dist
def test_a_run_with_a_slow_rank_goes_on(pool, shared_cache, tmp_path):
    calm = pool.run(slow_run, 2, str(shared_cache), (), str(tmp_path / "calm"))[0]
    specs = ("sleep=0.4@batch:2-8/rank=1",)
    slow = pool.run(slow_run, 2, str(shared_cache), specs, str(tmp_path / "slow"))[0]
    named = [[line for line in run["said"] if "is slow" in line] for run in (calm, slow)]
    assert named[0] == [] and len(named[1]) == 1 and "step 4: rank 1 is slow" in named[1][0]
    assert len(slow["drawn"]) == 2 and min(slow["drawn"]) > 1.5
    assert slow["records"] == calm["records"]
