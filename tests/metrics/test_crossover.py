"""Where the sparse curve goes below the dense one: planted, planted not to be, and false ones."""

import numpy as np
import pytest

from sparsecl.metrics import crossover as module
from sparsecl.metrics.crossover import crossover, moving_average


def rng(seed=0):
    return np.random.default_rng(seed)


def cross(difference, n=6, **options):
    """Crossover of arms with this mean difference [J] and seeds that differ in a common offset."""
    rows = np.asarray(difference, dtype=float) + 0.01 * np.arange(n)[:, None]
    return crossover(rows + 2.0, np.full_like(rows, 2.0), rng=rng(1), **options)


def curves(random, n, num_rounds, correlation):
    """Unit-normal curves [n, J], each round correlated with the one before."""
    rows = random.normal(size=(n, num_rounds))
    for j in range(1, num_rounds):
        rows[:, j] = correlation * rows[:, j - 1] + (1 - correlation**2) ** 0.5 * rows[:, j]
    return rows


def rate(shape, *, n, correlation, trials=300, num_rounds=20):
    """Share of studies in which a crossover is told; the arms differ by `shape` [J] on average."""
    random, told = rng([n, int(10 * correlation)]), 0
    for _ in range(trials):
        sparse, dense = (curves(random, n, num_rounds, correlation) for _ in range(2))
        told += crossover(sparse + shape, dense, rng=random).round is not None
    return told / trials


def test_the_moving_average_takes_what_exists_at_the_edges():
    assert moving_average([3.0, 0.0, 6.0, 0.0]).tolist() == [1.5, 3.0, 2.0, 3.0]
    assert moving_average([[1.0, 2.0]], window=1).tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="odd and positive, got 2"):
        moving_average([1.0], window=2)


def test_a_crossover_by_hand():
    # The accumulated disadvantage peaks after the fourth round; six seeds agree in every round,
    # and the sign pattern that turns all of them is as far out as the observed one, or not.
    found = cross([2, 2, 2, 1, -1, -2, -2, -2])
    assert (found.round, found.interval, found.p) == (5, (5, 5), 1 / 64)
    assert found.text() == "round 5 [5, 5], p = 0.016"
    assert (found.num_rounds, found.last_round, found.stays) == (8, 8, True)
    assert cross([2, 2, 2, 1, -1, -2, -2, -2], first_round=0).round == 4


def test_three_rounds_on_either_side_by_hand():
    assert cross([2, 2, -2, -2, -2, -2, -2, -2]).round is None
    assert cross([2, 2, 2, 2, 2, 2, -2, -2]).round is None
    assert cross([2, 2, 2, -2, -2, -2]).round == 4


def test_a_crossover_that_does_not_last_says_so():
    found = cross([3, 3, 3, -3, -3, -3, -3, -3, -3, 1, 1, 1])
    assert found.round == 4 and not found.stays
    assert found.text().endswith("; not below in every later round")


def test_too_few_seeds_or_rounds_are_told_and_not_tested():
    step = [1, 1, 1, -1, -1, -1]
    five, one, short = cross(step, n=5), cross(step, n=1), cross(step[:5])
    assert (five.round, five.p, five.interval) == (None, None, None)
    assert five.text() == "not tested: 5 seeds, 6 are needed"
    assert one.text() == "not tested: 1 seed, 6 are needed"
    assert short.text() == "not tested: 5 rounds, 6 are needed (3 on either side)"


def test_better_from_the_start_has_crossed_nothing():
    found = cross([-1.0] * 8)
    assert found.round is None
    assert found.text() == "none: below from the first round on, nothing was crossed"


def test_worse_to_the_end_is_not_shown():
    found = cross([1.0] * 8)
    assert found.round is None and found.text() == "not shown within 8 rounds (p = 1)"
    equal = crossover(np.ones((8, 20)), np.ones((8, 20)), rng=rng())
    assert (equal.round, equal.p) == (None, 1.0)  # not even by rounding


@pytest.mark.parametrize("n", [6, 8, 20])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_two_arms_of_one_distribution_do_not_cross(n, correlation):
    trials = 300 if n < 20 else 40
    assert rate(0.0, n=n, correlation=correlation, trials=trials) <= 0.05


@pytest.mark.parametrize("correlation", [0.0, 0.9])
@pytest.mark.parametrize("side", ["before", "after"])
def test_half_a_crossover_is_none(correlation, side):
    """Reliably worse, then equal; or equal, then reliably better: one true side is not two."""
    early = np.arange(20) < 10
    shape = np.where(early, 3.0, 0.0) if side == "before" else np.where(early, 0.0, -3.0)
    # At most 5 %; three standard errors of 300 trials are 0.04.
    assert rate(shape, n=8, correlation=correlation) <= 0.05 + 0.04


@pytest.mark.parametrize(("first_below", "n"), [(6, 8), (12, 6), (12, 20)])
def test_a_planted_crossover_is_found_where_it_is(first_below, n):
    rounds = np.arange(1, 21)
    shape = np.where(rounds < first_below, 2.0, -2.0)
    told, places, covered = 0, [], []
    for seed in range(20):
        random = rng(seed)
        sparse, dense = (curves(random, n, 20, 0.0) for _ in range(2))
        found = crossover(sparse + shape, dense, rng=random)
        if found.round is not None:
            low, high = found.interval
            told += 1
            places.append(abs(found.round - first_below))
            covered.append(low <= first_below <= high)
            assert low <= found.round <= high
    assert told >= 18 and np.mean(places) <= 1 and np.mean(covered) >= 0.9


def test_random_patterns_agree_with_all_patterns(monkeypatch):
    sparse, dense = curves(rng(1), 10, 20, 0.0), curves(rng(2), 10, 20, 0.0)
    shape = np.where(np.arange(20) < 10, 0.5, -0.5)
    exact = crossover(sparse + shape, dense, rng=rng(3))
    monkeypatch.setattr(module, "MAX_EXACT", 9)
    drawn = crossover(sparse + shape, dense, rng=rng(3))
    assert exact.p != drawn.p == pytest.approx(exact.p, abs=0.01)
    assert exact.round == drawn.round is not None


def test_curves_must_fit_and_be_finite():
    with pytest.raises(ValueError, match=r"got \(2, 5\) and \(3, 5\)"):
        crossover(np.zeros((2, 5)), np.zeros((3, 5)), rng=rng())
    broken = np.zeros((2, 5))
    broken[1, 3] = np.nan
    with pytest.raises(ValueError, match="curve 1 is not finite at round index 3"):
        crossover(broken, np.zeros((2, 5)), rng=rng())
