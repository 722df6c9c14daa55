"""When a topology moves, how much of it, and how its density falls."""

from dataclasses import replace

import pytest

from sparsecl.methods.dst.chts import Chts
from sparsecl.methods.dst.clock import cubic, sigmoid
from sparsecl.methods.dst.config import ChtsConfig, GranetConfig, RiglConfig, SetConfig
from sparsecl.methods.dst.granet import Granet
from sparsecl.methods.dst.rigl import Rigl
from tests.methods.plain import START

PHASES = 3
STEPS = 20


def moments(config: SetConfig) -> list[int]:
    """Steps of a run of three phases, after which a method that moves after the step does."""
    found = []
    for step in range(1, PHASES * STEPS + 1):
        phase = (step - 1) // STEPS
        at = replace(START, step=step, total_steps=PHASES * STEPS, phase=phase,
                     phase_step=step - phase * STEPS, phase_steps=STEPS)  # fmt: skip
        now = config.clock(at)
        if now is not None and now.step % config.every == 0:
            found.append(step)
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [8, 16, 24, 32, 40, 48, 56]),
        ({"end": 0.5}, [8, 16, 24]),
        ({"during": "first"}, [8, 16]),
        ({"during": "first", "end": 0.5}, [8]),
        ({"during": "after_switch", "switch_steps": 10}, [8, 28, 48]),
    ],
)
def test_when(options, expected):
    assert moments(SetConfig(every=8, **options)) == expected


def test_in_place_of_a_step_it_begins_at_once_in_every_stretch():
    method, due = Rigl(RiglConfig(every=8, during="after_switch", switch_steps=10)), []
    for step in range(PHASES * STEPS):
        phase = step // STEPS
        at = replace(START, step=step, total_steps=60, phase=phase,
                     phase_step=step % STEPS, phase_steps=STEPS)  # fmt: skip
        if method.is_due(at):
            due.append(step)
            method.last = step
    assert due == [0, 8, 20, 28, 40, 48]


def test_cubic():
    found = [cubic(0.5, 0.05, done / 10) for done in (0, 5, 9, 10)]
    assert found == pytest.approx([0.5, 0.10625, 0.05045, 0.05])


def test_sigmoid():
    found = [1 - sigmoid(0.5, 0.1, done / 80) for done in (0, 20, 40, 60, 80)]
    assert found == pytest.approx([0.5, 0.5181, 0.7, 0.8819, 0.9], abs=5e-5)


def test_the_last_pruning_and_the_published_end():
    """Ten prunings; the published code leaves out the last."""
    options = {"every": 10, "prune_end": 1.0, "final_density": 0.05}
    at = [replace(START, step=step, total_steps=100) for step in (10, 90, 100)]
    ours, theirs = (Granet(GranetConfig(**options, exact_final=exact)) for exact in (True, False))
    assert [ours.pruned_share(x) for x in at] == pytest.approx([0.1, 0.9, 1.0])
    assert [theirs.pruned_share(x) for x in at] == [0.1, 0.9, None]


def test_granet_replaces_less_and_less():
    method = Granet(GranetConfig())
    found = [method.fraction(replace(START, step=t, total_steps=100)) for t in (0, 50, 100)]
    assert found == pytest.approx([0.5, 0.2525, 0.005])


def test_chtss_prunes_on_where_the_graph_stays():
    method, due = Chts(ChtsConfig(every=10, final_density=0.05)), []
    for step in range(100):
        at = replace(START, step=step, total_steps=100)
        if method.is_due(at):
            due.append((step, method.pruned_share(at)))
            method.last = step
    assert due == [(10 * k, k / 8) for k in range(9)]


def test_temperature_rises_in_a_line():
    method = Chts(ChtsConfig(temperature=(1.0, 3.0), end=0.5))
    found = [method.temperature(replace(START, step=t, total_steps=100)) for t in (0, 25, 50, 90)]
    assert found == [1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ChtsConfig(temperature=(1.0, -2.0)), "temperature"),
        (lambda: GranetConfig(final_density=0.0), "final_density"),
        (lambda: RiglConfig(switch_steps=0), "switch_steps"),
        (lambda: RiglConfig(end=0.0), "end"),
    ],
)
def test_bad_options(make, word):
    with pytest.raises(ValueError, match=word):
        make()
