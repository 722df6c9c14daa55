"""Shares of units by hand: what one definition counts and another does not."""

import numpy as np
import pytest

from sparsecl.metrics.units import unit_figures

NAMES = ("dead", "dormant", "tau_dormant_0.025", "tau_dormant_0.1")


def test_eight_units_by_hand():
    # 200 tokens. Mean of the sums: 800 / 8 = 100, so the thresholds are 2.5 and 10.
    abs_sum = [0.0, 0.0, 2.5, 2.6, 10.0, 100.0, 300.0, 384.9]
    num_active = [0, 0, 200, 200, 200, 200, 200, 1]
    found = unit_figures(abs_sum, num_active, 200)
    assert tuple(found) == NAMES
    # The last unit is loud on one token and silent on all others: dormant, but not tau-dormant.
    assert found == pytest.approx(dict(zip(NAMES, (2 / 8, 3 / 8, 3 / 8, 5 / 8), strict=True)))


def test_the_bound_of_dormancy_is_strict():
    found = unit_figures([1.0, 1.0], [1, 2], 200)
    assert (found["dead"], found["dormant"]) == (0.0, 0.5)  # 2 of 200 is 1%, and awake


def test_a_layer_of_dead_units():
    assert unit_figures(np.zeros(3), np.zeros(3), 10) == dict.fromkeys(NAMES, 1.0)


def test_equal_units_are_all_awake_at_any_scale():
    for scale in (1e-20, 1.0, 1e20):
        assert set(unit_figures([scale] * 5, [10] * 5, 10).values()) == {0.0}


@pytest.mark.parametrize(("active", "num"), [([1], 10), ([1, 1], 0)])
def test_sums_that_do_not_fit_are_refused(active, num):
    with pytest.raises(ValueError, match="at least one token"):
        unit_figures([1.0, 2.0], active, num)
