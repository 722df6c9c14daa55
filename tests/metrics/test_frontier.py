"""Frontiers by hand, and planted worlds that must be read rightly.

A world: learned loss is a bowl over log2(rate), forgetting rises with the rate. An arm may need
another rate for the same (shift), forget more at every learned loss (effect), or learn nothing
below a floor (saturation).
"""

import numpy as np
import pytest

from sparsecl.metrics.frontier import Curve, Matched, common_range, equal_loss, frontier
from sparsecl.metrics.significance import paired_test

RATES = tuple(1e-3 * 2.0**k for k in range(5))
WORLDS = 300
"""A share near 0.95 then has a standard error of 0.013."""
ROOM = 3 * 0.0126


def line(low, high, value, slope=-1.0):
    x = np.array([low, high], dtype=float)
    return Curve(along=x, forgotten=value + slope * (x - low))


def settings(v, *, effect=0.0, stop=np.inf, floor=None):
    """[2, R]: learned loss and forgetting without noise where the arm's own log2(rate) is `v`."""
    v = v if stop == np.inf else stop * (1 - np.exp(-v / stop))
    x = 3.85 + 0.12 * (v - 2.7) ** 2
    if floor is not None:
        x = floor + 0.15 * np.logaddexp(0.0, (x - floor) / 0.15)
    return np.stack([x, 1.0 + 0.5 * v + effect])


def arm(rng, shared, *, shift=0.0, noise=0.02, **planted):
    """Seed -> [2, R]. `shared` [n, 2] is what a seed does to every run of it."""
    clean = settings(np.log2(np.array(RATES) / RATES[0]) - shift, **planted)
    return {
        seed: clean + offset[:, None] + rng.normal(0, noise, clean.shape)
        for seed, offset in enumerate(shared)
    }


def world(number, *, seeds=8, noise=0.02, **second):
    """Two arms of one seed each way; what is planted is in the second."""
    rng = np.random.default_rng([number, 15])
    shared = rng.normal(0, 0.05, (seeds, 2))
    return arm(rng, shared, noise=noise), arm(rng, shared, noise=noise, **second)


def compared(runs, *, paired=True, **options) -> Matched:
    """Second arm minus first arm."""
    first, second = ({s: frontier(RATES, *values) for s, values in one.items()} for one in runs)
    return equal_loss(second, first, paired=paired, rng=np.random.default_rng(0), **options)


def broken_line(learned, forgotten):
    """The runs that no other beats, joined by straight lines."""
    order = [
        k
        for k in np.argsort(learned)
        if not ((learned < learned[k]) & (forgotten <= forgotten[k])).any()
    ]
    return Curve(along=learned[order], forgotten=forgotten[order])


def contrasts(worlds):
    return [compared(one).test for one in worlds]


def share(values):
    return float(np.mean(list(values)))


# ---- by hand


def test_a_frontier_of_three_runs():
    # The highest rate learns less and forgets more than the middle one: it is beaten.
    found = frontier([1.0, 2.0, 4.0], [5.0, 4.0, 4.5], [1.0, 2.0, 3.0])
    assert (found.low, found.high) == (4.0, 5.0)
    assert found.at([4.0, 5.0]).tolist() == [2.0, 1.0]
    assert 1.0 < found.at(4.5) < 2.0
    assert (np.diff(found.along) > 0).all() and (np.diff(found.forgotten) < 0).all()


def test_the_order_of_the_rates_does_not_matter():
    a = frontier([1.0, 2.0, 4.0], [5.0, 4.0, 4.5], [1.0, 2.0, 3.0])
    b = frontier([4.0, 1.0, 2.0], [4.5, 5.0, 4.0], [3.0, 1.0, 2.0])
    assert a.along.tolist() == b.along.tolist()
    assert a.forgotten.tolist() == b.forgotten.tolist()


def test_it_is_the_smallest_forgetting_among_rates_that_learn_as_well():
    rng = np.random.default_rng(4)
    x, y = rng.normal(4, 0.3, 5), rng.normal(2, 0.5, 5)
    found = frontier(RATES, x, y)
    for learned, forgotten in zip(x, y, strict=True):
        if found.low <= learned <= found.high:
            assert found.at(learned) <= forgotten + 1e-12
    # No run is surpassed.
    assert (found.low, found.forgotten[-1]) == (x.min(), y.min())


def test_nothing_is_extrapolated():
    found = frontier([1.0, 2.0], [5.0, 4.0], [1.0, 2.0])
    for outside in (3.99, 5.01, np.nan):
        with pytest.raises(ValueError, match="from 4 to 5 only"):
            found.at(outside)


def test_runs_without_a_value_are_no_points():
    whole = frontier([1.0, 2.0, 4.0], [5.0, 4.0, np.nan], [1.0, 2.0, 3.0])
    assert (whole.low, whole.high) == (4.0, 5.0)
    assert frontier([1.0, 2.0], [5.0, 4.0], [1.0, None]) is None
    assert frontier([1.0], [5.0], [1.0]) is None


@pytest.mark.parametrize("rates", [[1.0, 1.0], [0.0, 1.0], [-1.0, 1.0]])
def test_rates_that_make_no_sense(rates):
    with pytest.raises(ValueError, match=r"distinct and > 0"):
        frontier(rates, [5.0, 4.0], [1.0, 2.0])


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="one value for each rate"):
        frontier([1.0, 2.0], [5.0], [1.0, 2.0])


def test_two_arms_by_hand():
    first = {seed: line(4.0, 5.0, 2.0 + 0.1 * seed) for seed in range(6)}
    second = {seed: line(4.5, 6.0, 1.0) for seed in range(6)}
    found = equal_loss(first, second, paired=True, rng=np.random.default_rng(0))
    assert (found.grid[0], found.grid[-1]) == (4.5, 5.0)
    # 1.5 against 1.0 at 4.5, equal slopes, and 0.1 more for each seed.
    assert found.differences == pytest.approx([0.5 + 0.1 * seed for seed in range(6)])
    assert found.test.mean == pytest.approx(0.75)
    assert found.first - found.second == pytest.approx(np.full(33, 0.75))
    assert found.why == ""


def test_the_interval_is_that_of_the_paired_differences():
    found = compared(world(1))
    assert found.test == paired_test(found.differences, rng=np.random.default_rng(0))


def test_five_seeds_give_no_interval():
    found = compared(world(1, seeds=5))
    assert found.test.mean is not None and found.test.t is None and found.test.p is None


def test_seeds_of_one_arm_alone_are_named():
    first, second = world(1)
    del first[3]
    found = compared((first, second))
    assert found.left_out == (3,) and 3 not in found.seeds and len(found.differences) == 7


def test_no_common_range_is_an_answer():
    first = {seed: line(3.0, 4.0, 2.0) for seed in range(6)}
    second = {seed: line(4.5, 5.0, 1.0) for seed in range(6)}
    found = equal_loss(first, second, paired=True, rng=np.random.default_rng(0))
    assert found.test is None and found.differences == () and len(found.grid) == 0
    assert found.why == (
        "no learned loss that every seed of both arms reaches "
        "(the first arm from 3 to 4; the second arm from 4.5 to 5)"
    )
    lonely = equal_loss(first, {}, paired=True, rng=np.random.default_rng(0))
    assert lonely.why == "no seed has both frontiers" and lonely.test is None
    lonely = equal_loss(first, {}, paired=False, rng=np.random.default_rng(0))
    assert lonely.why == "an arm has no frontier"


def test_the_common_range_is_that_of_every_seed():
    assert common_range([line(3.0, 5.0, 1.0), line(4.0, 6.0, 1.0)]) == (4.0, 5.0)
    with pytest.raises(ValueError, match="no frontier"):
        common_range([])


def test_groups_that_are_not_paired():
    first = {seed: line(4.0, 5.0, 2.0 + 0.01 * seed) for seed in range(7)}
    second = {seed: line(4.0, 5.0, 1.0 - 0.01 * seed) for seed in range(10, 16)}
    found = equal_loss(first, second, paired=False, rng=np.random.default_rng(0))
    assert not found.test.paired and found.differences == () and found.left_out == ()
    assert found.test.mean == pytest.approx(1.03 - -0.125 + 0.0, abs=1e-9)


# ---- planted worlds


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.5])
def test_the_rate_alone(shift):
    """The trap: equal frontiers and other best rates differ at one rate, not at equal loss."""
    worlds = [world(k, shift=shift) for k in range(WORLDS)]
    found = contrasts(worlds)
    assert share(test.t.contains(0.0) for test in found) == pytest.approx(0.95, abs=ROOM)
    assert share(test.p <= 0.05 for test in found) <= 0.05 + ROOM
    at_one_rate = [
        paired_test([second[s][1, 2] - first[s][1, 2] for s in first], rng=np.random.default_rng(0))
        for first, second in worlds[:20]
    ]
    assert all(test.p <= 0.05 for test in at_one_rate)
    assert share(test.mean for test in at_one_rate) == pytest.approx(-0.5 * shift, abs=0.02)


@pytest.mark.parametrize("planted", [{"shift": 1.5}, {"stop": 2.0}])
def test_with_little_noise_the_spline_is_less_biased_than_straight_lines(planted):
    worlds = [world(k, noise=0.003, **planted) for k in range(60)]
    assert share(test.t.contains(0.0) for test in contrasts(worlds)) >= 0.88
    held = []
    for runs in worlds:
        first, second = ({s: broken_line(*one[s]) for s in one} for one in runs)
        found = equal_loss(second, first, paired=True, rng=np.random.default_rng(0))
        held.append(found.test.t.contains(0.0))
    assert share(held) < 0.85


def test_nothing_at_all():
    found = contrasts([world(k) for k in range(WORLDS)])
    assert share(test.p <= 0.05 for test in found) <= 0.05 + ROOM
    assert share(test.t.contains(0.0) for test in found) == pytest.approx(0.95, abs=ROOM)


def test_arms_that_are_not_paired():
    """A seed moves all its runs alike; unpaired, that is noise of the difference."""
    paired, apart = (
        [compared(world(k, shift=1.0), paired=how).test for k in range(100)]
        for how in (True, False)
    )
    assert share(test.t.contains(0.0) for test in apart) >= 0.95 - 3 * 0.022
    assert share(test.t.high - test.t.low for test in apart) > 1.5 * share(
        test.t.high - test.t.low for test in paired
    )


def test_an_effect_is_found_at_its_size():
    found = contrasts([world(k, effect=-0.05, shift=0.7) for k in range(WORLDS)])
    assert share(test.t.contains(-0.05) for test in found) == pytest.approx(0.95, abs=ROOM)
    assert share(test.mean for test in found) == pytest.approx(-0.05, abs=0.005)
    assert share(test.p <= 0.05 and test.mean < 0 for test in found) > 0.9


def test_saturation_alone_is_no_effect():
    """An arm that stops half way learns and forgets less at every rate, and no less at equal
    loss."""
    worlds = [world(k, stop=2.0) for k in range(WORLDS)]
    found = contrasts(worlds)
    assert share(test.t.contains(0.0) for test in found) == pytest.approx(0.95, abs=ROOM)
    first, second = worlds[0]
    at_best = [
        np.mean([runs[seed][1, runs[seed][0].argmin()] for seed in runs])
        for runs in (first, second)
    ]
    assert at_best[1] < at_best[0] - 0.2


def test_a_floor_is_an_effect_near_the_floor_alone():
    """Rates that only forget more are an effect at equal loss where the arm can hardly get to."""
    found = [compared(world(k, floor=4.1)) for k in range(100)]
    along = np.mean([one.first - one.second for one in found], axis=0)
    assert along[0] > 0.2 and np.abs(along[16:]).max() < 0.03
    assert share(one.test.mean > 0 for one in found) > 0.9


def test_an_arm_that_saturates_at_once_cannot_be_compared():
    found = compared(world(0, stop=0.1, shift=0.0))
    assert found.test is None and "no learned loss that every seed" in found.why
