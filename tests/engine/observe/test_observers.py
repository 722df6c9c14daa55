"""Those who watch a run, by hand: what they say, and that they go on from what they kept."""

from types import SimpleNamespace
from typing import Any

import pytest

from sparsecl.engine.observe import clock as module
from sparsecl.engine.observe.clock import Clock
from sparsecl.engine.observe.early_end import EarlyEnd
from sparsecl.engine.observe.health import MIN_SEEN, WINDOW, Health
from sparsecl.engine.outcomes import StepResult
from sparsecl.engine.position import Position
from sparsecl.engine.run_config import HealthConfig, PhasesConfig
from sparsecl.errors import InvariantError


def test_a_clock_goes_on_where_it_was(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock = Clock()
    now[0] += 7.0
    clock.step_took(2.5)
    kept = clock.state_dict()
    assert kept == {"train_seconds": 2.5, "seconds": 7.0}
    now[0] += 1000.0  # the time until the restart is nobody's
    again = Clock()
    again.load_state_dict(kept)
    now[0] += 1.0
    again.step_took(0.5)
    assert (again.seconds, again.train_seconds) == (8.0, 3.0)
    clock.load_state_dict(kept)  # a rollback: what came after it did not happen
    assert (clock.seconds, clock.train_seconds) == (7.0, 2.5)


def test_patience_watches_the_first_phase_alone():
    watch = EarlyEnd(PhasesConfig(patience=2, min_improvement=0.1))
    assert watch.judges(0) and not watch.judges(1)
    assert [watch.ends(0, loss) for loss in (3.0, 2.95, 2.5)] == [False, False, False]
    other = EarlyEnd(watch.config)
    other.load_state_dict(watch.state_dict())
    for one in (watch, other):
        assert [one.ends(0, loss) for loss in (2.45, 2.41)] == [False, True]
    assert not watch.ends(1, 9.0)


def test_a_loss_for_each_phase_ends_it():
    watch = EarlyEnd(PhasesConfig(until_loss=(2.0, 1.5)))
    assert [watch.judges(phase) for phase in range(3)] == [True, True, False]
    assert [watch.ends(0, 2.1), watch.ends(0, 2.0), watch.ends(1, 2.0)] == [False, True, False]


class FakeJournal:
    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []

    def record(self, kind: str, **values: Any) -> None:
        self.records.append((kind, values))

    def say(self, text: str) -> None: ...


def health(tmp_path, **options: Any) -> Health:
    journal: Any = FakeJournal()
    return Health(HealthConfig(**options), Position(step=3), journal, tmp_path)


def result(applied: bool) -> StepResult:
    return StepResult([], None, applied, [])


def test_discarded_steps_are_counted_in_a_row(tmp_path):
    one = health(tmp_path, max_bad_steps=3)
    for applied in (False, True, False, False):
        one.judge(result(applied), batch={})
    other = health(tmp_path, max_bad_steps=3)
    other.load_state_dict(one.state_dict())
    for watch in (one, other):
        assert watch.suspicious
        with pytest.raises(InvariantError, match="3 steps in a row"):
            watch.judge(result(False), batch={})


def test_a_spike_is_far_above_the_usual_of_its_stage(tmp_path):
    watch = health(tmp_path, spike_factor=2.0)
    assert [watch.spike(loss) for loss in [9.0] + [1.0] * (MIN_SEEN - 1)] == [None] * MIN_SEEN
    spike = watch.spike(2.1)
    assert spike is not None and (spike.loss, spike.usual) == (2.1, 1.0)
    assert watch.kept.recent_losses[-1] == 1.0  # what is no usual loss is not remembered
    watch.begin_stage()
    assert [watch.spike(loss) for loss in [9.0] * WINDOW] == [None] * WINDOW
    assert watch.spike(17.0) is None and len(watch.kept.recent_losses) == WINDOW
