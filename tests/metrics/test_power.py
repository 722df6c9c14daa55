"""Power by hand, against published values, and against simulated studies."""

import numpy as np
import pytest
from scipy import stats

from sparsecl.metrics import power as powers
from sparsecl.metrics.power import detectable, fewest_seeds, power, seeds_for, upper_sd
from sparsecl.metrics.significance import paired_test

DRAWS = 2000
"""A share near 0.8 then has a standard error of 0.009."""


def test_without_an_effect_the_power_is_the_size():
    for n in (6, 8, 40):
        assert power(0.0, 1.0, n, alpha=0.05) == pytest.approx(0.05)
        assert power(0.0, 1.0, n, alpha=0.01, paired=False) == pytest.approx(0.01)


def test_cohens_table():
    # Cohen 1988, table 2.4.1, two-sided 0.05, power 0.80: d = 0.5 needs 64 of each group.
    assert seeds_for(0.5, 1.0, paired=False) == 64
    # Paired, d_z = 0.5: 34 pairs (G*Power 3.1 manual, matched pairs).
    assert seeds_for(0.5, 1.0) == 34


def test_it_is_the_noncentral_t():
    n, effect, sd, alpha = 8, 0.07, 0.05, 0.01
    hurdle, shift = stats.t.ppf(1 - alpha / 2, n - 1), effect / (sd / n**0.5)
    expected = stats.nct.sf(hurdle, n - 1, shift) + stats.nct.cdf(-hurdle, n - 1, shift)
    assert power(effect, sd, n, alpha=alpha) == pytest.approx(expected, abs=1e-9)
    assert power(-effect, sd, n, alpha=alpha) == power(effect, sd, n, alpha=alpha)


@pytest.mark.parametrize("n", [8, 12])
@pytest.mark.parametrize("paired", [True, False])
def test_against_simulated_t_tests(n, paired):
    random = np.random.default_rng(n)
    effect, sd = 0.06, 0.05
    first, second = random.normal(effect, sd, (DRAWS, n)), random.normal(0, sd, (DRAWS, n))
    p = stats.ttest_1samp(first, 0, axis=1) if paired else stats.ttest_ind(first, second, axis=1)
    expected = power(effect, sd, n, paired=paired)
    assert 0.3 < expected < 0.99
    assert np.mean(p.pvalue <= 0.05) == pytest.approx(expected, abs=0.03)


def test_against_the_sign_flips_of_a_study():
    """The planned effect is found about as often as the t test promises, and no oftener."""
    random = np.random.default_rng(3)
    effect = detectable(0.05, 8)
    found = [
        paired_test(random.normal(effect, 0.05, 8), rng=random).p <= 0.05 for _ in range(DRAWS)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_what_is_detectable_has_the_power_it_says():
    for paired in (True, False):
        for alpha in (0.05, 0.05 / 3):
            found = detectable(0.04, 9, alpha=alpha, paired=paired)
            assert power(found, 0.04, 9, alpha=alpha, paired=paired) == pytest.approx(0.8)
    assert detectable(0.08, 9) == pytest.approx(2 * detectable(0.04, 9))
    assert detectable(0.04, 16) < detectable(0.04, 9)
    assert detectable(0.04, 9, alpha=0.01) > detectable(0.04, 9)


def test_seeds_are_the_fewest():
    n = seeds_for(0.03, 0.05, alpha=0.05 / 4)
    assert power(0.03, 0.05, n, alpha=0.05 / 4) >= 0.8
    assert power(0.03, 0.05, n - 1, alpha=0.05 / 4) < 0.8
    assert detectable(0.05, n, alpha=0.05 / 4) <= 0.03 < detectable(0.05, n - 1, alpha=0.05 / 4)


def test_too_few_seeds_for_any_effect():
    assert fewest_seeds(0.05) == 6
    assert fewest_seeds(0.05 / 3) == 7  # 2^-6 <= 0.0167
    assert detectable(0.04, 5) is None
    assert detectable(0.04, 6, alpha=0.05 / 3) is None
    assert seeds_for(100.0, 0.001, alpha=0.05 / 3) == 7  # however large the effect


def test_no_spread_and_no_end(monkeypatch):
    assert power(0.1, 0.0, 6) == 1.0 and power(0.0, 0.0, 6) == 0.05
    assert detectable(0.0, 6) == 0.0
    assert seeds_for(0.1, 0.0) == 6
    assert power(1e6, 1.0, 6) == 1.0
    monkeypatch.setattr(powers, "MOST", 50)
    assert seeds_for(0.01, 1.0) is None


def test_the_upper_end_of_a_standard_deviation():
    assert upper_sd(0.05, 7) == pytest.approx(0.05 * (7 / stats.chi2.ppf(0.2, 7)) ** 0.5)
    random = np.random.default_rng(2)
    seen = random.normal(0, 0.05, (DRAWS, 8)).std(axis=1, ddof=1)
    assert np.mean([upper_sd(one, 7) >= 0.05 for one in seen]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power(0.1, 1.0, 1), "at least 2 seeds, got 1"),
        (lambda: power(float("nan"), 1.0, 6), "effect must be finite"),
        (lambda: power(0.1, -1.0, 6), "sd must be finite and >= 0, got -1"),
        (lambda: power(0.1, 1.0, 6, alpha=5), "For 5 % write 0.05"),
        (lambda: seeds_for(0.0, 1.0), "other than 0, got 0"),
        (lambda: detectable(1.0, 8, wanted=1.0), "in (alpha, 1), got 1.0"),
        (lambda: upper_sd(1.0, 0), "freedom >= 1"),
    ],
)
def test_what_makes_no_sense(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
