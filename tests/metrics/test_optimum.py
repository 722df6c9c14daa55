"""The best density, by hand, and where there is none."""

import numpy as np
import pytest

from sparsecl.metrics.optimum import optimal_density, optimum_slope


def rng():
    return np.random.default_rng(0)


def test_the_density_with_the_best_mean():
    # Means over six seeds: 0.1 -> 2.5, 1.0 -> 3.0, 0.01 -> 4.0.
    table = [[2, 3, 5], [3, 3, 3]] * 3
    found = optimal_density([0.1, 1.0, 0.01], table, rng=rng())
    assert (found.density, found.value, found.num_seeds) == (0.1, 2.5, 6)
    assert (found.densities, found.means) == ((0.01, 0.1, 1.0), (4.0, 2.5, 3.0))
    assert not found.at_edge
    # 1.5 +- 4.2 and 0.5 +- 1.4 (t over differences 3, 0, ... and 1, 0, ...): neither is told apart.
    assert (found.interval.low, found.interval.high) == (0.01, 1.0)
    assert found.shares[1] == pytest.approx(1 - 2**-6, abs=0.01)
    highest = optimal_density([0.1, 1.0, 0.01], table, better="higher", rng=rng())
    assert highest.density == 0.01 and highest.at_edge


def test_densities_that_are_reliably_worse_are_outside_of_the_interval():
    noise = np.random.default_rng(1).normal(0, 0.05, (8, 4))
    found = optimal_density([0.01, 0.05, 0.1, 1.0], noise + [2.0, 1.0, 1.0, 1.5], rng=rng())
    assert (found.interval.low, found.interval.high) == (0.05, 0.1)


def test_the_interval_of_the_optimum_leaves_the_best_out_no_more_often_than_it_says():
    random, hits = np.random.default_rng(2), []
    for _ in range(300):
        values = random.normal(0, 1, (6, 5)) + [0.6, 0.0, 0.6, 1.0, 1.5]
        found = optimal_density([0.01, 0.05, 0.1, 0.3, 1.0], values, draws=1, rng=random)
        hits.append(found.interval.contains(0.05))
    assert np.mean(hits) >= 0.95


def test_seeds_and_densities_without_a_value_are_left_out():
    table = [[1.0, 2.0, None], [9.0, None, None], [3.0, 2.5, None]]
    found = optimal_density([0.1, 0.2, 0.3], table, rng=rng())
    assert (found.num_seeds, found.densities, found.means) == (2, (0.1, 0.2), (2.0, 2.25))
    one = optimal_density([0.1, 0.2], [[1.0, 2.0]], rng=rng())
    assert (one.density, one.interval, one.shares) == (0.1, None, None)


@pytest.mark.parametrize(
    "densities, table, message",
    [
        ([0.1, 0.2], [[1.0, None]], "needs values at 2 or more densities, got 1"),
        ([0.1, 0.2], [[1.0, None], [None, 2.0]], "no seed has a value at every density"),
        ([0.1, 2.0], [[1.0, 2.0]], "density must be in"),
        ([0.1, 0.1], [[1.0, 2.0]], "distinct densities"),
    ],
)
def test_where_there_is_no_optimum(densities, table, message):
    with pytest.raises(ValueError, match=message):
        optimal_density(densities, table, rng=rng())


def test_the_slope_over_sizes():
    # Best at 0.01, 0.1 and 1.0 for 1e6, 1e7 and 1e8 parameters: log10 rho* rises by 1 each time.
    rho = [0.01, 0.1, 1.0]
    grids = [(rho, [np.roll([0.0, 1.0, 2.0], k)] * 6) for k in range(3)]
    found = optimum_slope([10**6, 10**7, 10**8], grids)
    assert found.slope == pytest.approx(1.0) and found.num_seeds == 6
    assert (found.interval.low, found.interval.high) == pytest.approx((1.0, 1.0))
    with pytest.raises(ValueError, match="two or more sizes"):
        optimum_slope([10, 10], grids[:2])
