"""FLOPs of moving a graph, by hand. Real runs are counted in tests/distributed/test_work.py."""

import pytest

from sparsecl.methods.dst.config import (
    ChtConfig,
    ChtsConfig,
    DeepRConfig,
    GranetConfig,
    RiglConfig,
    SetConfig,
    SnfsConfig,
)
from sparsecl.methods.work import LayerWork, MethodWork, RunWork


def run(*, sparse: bool = False, phases: tuple[int, ...] = (10,)) -> RunWork:
    """One layer [4, 6] of which 12 live, two heads; 100 tokens a step."""
    layer = LayerWork(outputs=4, inputs=6, live=12, heads=2, sparse=sparse, has_gradient=not sparse)
    return RunWork(layers=(layer,), phases=phases, tokens=100)


def test_what_only_draws_and_sorts_costs_no_product():
    for config in (SetConfig(every=2), DeepRConfig()):
        assert config.work(run()) == MethodWork()


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (RiglConfig(every=4, end=0.8), 3),  # 0, 4, 8
        (RiglConfig(every=4, end=0.7), 2),
        (SnfsConfig(every=5), 10),
        (SetConfig(every=4, drop="mest"), 2),  # after steps 4 and 8
        (GranetConfig(every=5, final_density=0.5), 2),
    ],
)
def test_dense_gradients(config, steps):
    """2 FLOPs for each of 12 absent weights and 100 tokens; in csr one product of 24 cells."""
    assert config.work(run()).gradients == steps * 2 * 12 * 100
    assert config.work(run()).executed == 0
    assert config.work(run(sparse=True)).executed == steps * 2 * 24 * 100


def test_every_stretch_begins_at_once():
    config = RiglConfig(every=4, during="after_switch", switch_steps=5)
    assert config.work(run(phases=(10, 10))).gradients == 4 * 2 * 12 * 100


def test_a_falling_density():
    """Of 24 cells 12 live at first. After step 5 half of the prunings are done: 0.125 of the way is
    left, 6.75 live; so 5 steps with 5 fewer. Gradients: 12 and then 17 absent."""
    found = GranetConfig(every=5, prune_end=1.0, final_density=0.25).work(run())
    assert found.density == -5 * 5 * 6 * 100
    assert found.gradients == (12 + 17) * 2 * 100
    assert GranetConfig(every=5, prune_end=1.0, final_density=0.25).work(
        run(sparse=True)
    ).executed == (found.density + 2 * 2 * 24 * 100)


def test_scores():
    """4 O I (O + I) in matrix form; 2 O I (O + I) and 2 O I for each of 9 links by paths."""
    options = {"every": 5, "drop_fraction": 0.25, "percolate": False}
    assert ChtConfig(**options, score="ch3_l3n").work(run()).scores == 2 * 4 * 24 * 10
    assert ChtConfig(**options).work(run()).scores == 2 * (2 * 24 * 10 + 2 * 24 * 9)
    # In place of steps 0 and 5, of which the cosine leaves something to drop; by heads of 2 rows.
    chts = ChtsConfig(every=5, drop_fraction=0.25)
    assert chts.work(run()).scores == 4 * 24 * 10  # at step 5 it is int(12 x 0.06)
    heads = ChtsConfig(every=5, drop_fraction=0.25, per_head=True)
    assert heads.work(run()).scores == 4 * 24 * 8


def test_a_surplus():
    """Target 6 of 24; 12 up to 60 % of 8 steps, then 9, and 6 from the last rewire on."""
    config = ChtsConfig(every=2, end=0.8, em_s=(0.25, 0.125))
    found = config.work(run())
    live = [12] * 7 + [9] * 2 + [6]  # in place of steps 0, 2, 4, 6 and 8
    assert found.density == 6 * 100 * sum(num - 12 for num in live)
    assert found.scores == 4 * 4 * 24 * 10  # the last one grows nothing
