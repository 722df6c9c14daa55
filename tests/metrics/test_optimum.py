"""The best density, by hand, and where there is none."""

import numpy as np
import pytest

from sparsecl.metrics.optimum import optimal_density, optimum_slope


def rng():
    return np.random.default_rng(0)


def test_the_density_with_the_best_mean():
    # Means over two seeds: 0.1 -> 2.5, 1.0 -> 3.0, 0.01 -> 4.0.
    found = optimal_density([0.1, 1.0, 0.01], [[2, 3, 5], [3, 3, 3]], rng=rng())
    assert (found.density, found.value, found.num_seeds) == (0.1, 2.5, 2)
    assert (found.densities, found.means) == ((0.01, 0.1, 1.0), (4.0, 2.5, 3.0))
    assert not found.at_edge
    # Seed 1 alone has no preference: of equal ones the smallest wins. It is drawn twice in 1/4.
    assert found.shares == pytest.approx((0.25, 0.75, 0.0), abs=0.02)
    assert (found.interval.low, found.interval.high) == (0.01, 0.1)
    highest = optimal_density([0.1, 1.0, 0.01], [[2, 3, 5], [3, 3, 3]], better="higher", rng=rng())
    assert highest.density == 0.01 and highest.at_edge


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
    grids = [(rho, [np.roll([0.0, 1.0, 2.0], k)] * 3) for k in range(3)]
    found = optimum_slope([10**6, 10**7, 10**8], grids, rng=rng())
    assert found.slope == pytest.approx(1.0) and found.num_seeds == 3
    assert (found.interval.low, found.interval.high) == pytest.approx((1.0, 1.0))
    with pytest.raises(ValueError, match="two or more sizes"):
        optimum_slope([10, 10], grids[:2], rng=rng())
