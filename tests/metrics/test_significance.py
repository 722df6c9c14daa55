"""Sign flips and equivalence: reference vectors, SciPy, and sizes in simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsecl.metrics import significance
from sparsecl.metrics.significance import (
    cohen_dz,
    pair,
    paired_test,
    permutation,
    reach,
    seeds_needed,
    sign_flip,
    smallest_p,
    tost,
    unpaired_test,
)


def rng(seed=0):
    return np.random.default_rng(seed)


# Sign flip -----------------------------------------------------------------------------------


def test_sign_flip_by_hand():
    assert sign_flip([1.0] * 6) == 2 / 64
    # |sum| of +-1 +-2 +-3: 6, 4, 2, 0 and negated. Observed 0: all patterns; observed 4: 4 of 8.
    assert sign_flip([1.0, 2.0, -3.0]) == 1.0
    assert sign_flip([-1.0, 2.0, 3.0]) == 4 / 8
    assert sign_flip([0.1, 0.2, 0.3]) == 2 / 8
    assert sign_flip([0.0] * 7) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_sign_flip_is_the_paired_permutation_test_of_scipy(seed):
    data = rng(seed).normal(0.4, 1.0, 9)
    theirs = stats.permutation_test(
        (data,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(data) == pytest.approx(theirs.pvalue)


def test_random_patterns_agree_with_all_patterns(monkeypatch):
    data = rng(4).normal(0.5, 1.0, 12)
    exact = sign_flip(data)
    monkeypatch.setattr(significance, "MAX_EXACT", 11)
    assert exact != sign_flip(data, rng=rng(1)) == pytest.approx(exact, abs=0.005)
    # k = 0 random patterns reach 12 equal signs only by chance; p is never zero.
    assert 0 < sign_flip([1.0] * 40, rng=rng(1)) == smallest_p(40) == 1 / 100_001
    with pytest.raises(ValueError, match="40 seeds are too many"):
        sign_flip([1.0] * 40)


@pytest.mark.parametrize("n", [6, 8])
def test_sign_flip_rejects_a_true_null_at_most_as_often_as_alpha(n):
    """Heavy tails and unequal spreads do not matter, as long as the signs are fair."""
    data = rng(n).standard_cauchy((3000, n)) * np.arange(1, n + 1)
    p = np.array([sign_flip(row) for row in data])
    # Exact size: the largest multiple of 2^(1-n) that is <= 0.05. Three standard errors are 0.012.
    size = np.floor(0.05 * 2 ** (n - 1)) / 2 ** (n - 1)
    assert np.mean(p <= 0.05) == pytest.approx(size, abs=0.012)


def test_the_smallest_p_and_the_seeds_it_takes():
    assert [smallest_p(n) for n in (1, 5, 6, 8)] == [1.0, 0.0625, 0.03125, 0.0078125]
    assert (seeds_needed(0.05), seeds_needed(0.05, 10), seeds_needed(0.0625)) == (6, 9, 5)


# One contrast --------------------------------------------------------------------------------


def test_five_seeds_get_no_p_value():
    test = paired_test([1.0] * 4 + [1.1], rng=rng())
    assert (test.p, test.reachable, test.smallest_p) == (None, False, 0.0625)
    assert test.why == "5 seeds: the smallest reachable p is 0.0625 > 0.05; 6 seeds are needed"
    assert (test.t, test.d_z, test.equivalence) == (None, None, None)
    assert paired_test([1.0] * 5, alpha=0.1, rng=rng()).p == 2 / 32


def test_a_family_needs_more_seeds_than_one_contrast():
    test = paired_test([1.0] * 6, num_contrasts=10, rng=rng())
    assert (test.p, test.reachable, test.family_reachable) == (2 / 64, True, False)
    assert (test.seeds_needed, test.family_seeds_needed) == (6, 9)
    assert "0.05/10" in test.why and "9 with Holm over 10 contrasts" in test.why
    assert reach(9, num_contrasts=10) is None


def test_a_planted_effect_is_found_and_a_planted_null_is_not():
    noise = rng(7).normal(0.0, 0.05, 10)
    noise -= noise.mean()
    effect = paired_test(noise + 0.1, margin=0.05, rng=rng(1))
    assert effect.p <= 0.01 and effect.why is None
    assert effect.mean == pytest.approx(0.1) and effect.d_z > 1
    for interval in (effect.percentile, effect.bca, effect.t):
        assert interval.level == 0.95 and interval.low > 0.05
    assert not effect.equivalence.inside and effect.equivalence.p > 0.9
    null = paired_test(noise, margin=0.05, rng=rng(1))
    assert null.p > 0.5 and null.t.contains(0.0)
    assert null.equivalence.inside and null.equivalence.p < 0.05


@pytest.mark.parametrize("n", [0, 1])
def test_a_contrast_without_enough_seeds_is_empty_and_says_so(n):
    test = paired_test([0.2] * n, margin=0.1, rng=rng())
    assert test.num_seeds == n and test.mean == (0.2 if n else None)
    rest = (test.sd, test.percentile, test.bca, test.t, test.p, test.d_z, test.equivalence)
    assert rest == (None,) * 7
    assert test.why.startswith(f"{n} seed{'s' if n == 0 else ''}: the smallest reachable p is 1 ")


# Groups --------------------------------------------------------------------------------------


def test_permutation_by_hand():
    # Of C(4, 2) = 6 choices two are as far apart as {1, 2} and {3, 4}.
    assert permutation([1.0, 2.0], [3.0, 4.0]) == 2 / 6
    assert permutation([0.0] * 3, [0.0] * 4) == 1.0
    assert permutation([9.0], [0.0, 0.0, 0.0]) == 1 / 4


@pytest.mark.parametrize("sizes", [(6, 6), (5, 8)])
def test_permutation_is_that_of_scipy(sizes):
    a, b = (rng(k).normal(0.5 * k, 1.0, n) for k, n in enumerate(sizes))
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.abs(x.mean(axis=axis) - y.mean(axis=axis)),
        alternative="greater",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert permutation(a, b) == pytest.approx(theirs.pvalue)


def test_random_choices_agree_with_all_choices(monkeypatch):
    a, b = rng(1).normal(0.9, 1.0, 8), rng(2).normal(0.0, 1.0, 8)
    exact = permutation(a, b)
    monkeypatch.setattr(significance, "MAX_CHOICES", 100)
    assert exact != permutation(a, b, rng=rng(1)) == pytest.approx(exact, abs=0.006)
    with pytest.raises(ValueError, match="groups of 8 and 8 are too many"):
        permutation(a, b)


def test_groups_without_pairs_are_tested_by_welch_and_permutation():
    a, b = rng(1).normal(1.0, 1.0, 10), rng(2).normal(0.0, 0.2, 12)
    found = unpaired_test(a, b, margin=0.05, rng=rng())
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (found.t.low, found.t.high) == pytest.approx((theirs.low, theirs.high))
    assert found.mean == pytest.approx(a.mean() - b.mean()) and not found.paired
    assert found.p == permutation(a, b, rng=rng())
    assert (found.sd, found.d_z, found.bca) == (None, None, None)
    assert found.percentile.contains(found.mean) and not found.equivalence.inside
    same = unpaired_test(b, b + 0.001, margin=0.5, rng=rng())
    assert same.equivalence.inside and same.p > 0.5


def test_groups_that_cannot_reach_alpha_get_no_p():
    found = unpaired_test([1.0, 1.1, 1.2], [0.0, 0.1, 0.2], margin=0.1, rng=rng())
    assert (found.p, found.t, found.equivalence) == (None, None, None)
    assert found.why == (
        "unpaired, 3 and 3 seeds: the smallest reachable p is 0.1 > 0.05; 4 seeds are needed"
    )
    assert smallest_p(8, 8) == 2 / 12870 and smallest_p(3, 4) == 1 / 35
    assert seeds_needed(0.05, paired=False) == 4
    empty = unpaired_test([], [1.0], rng=rng())
    assert (empty.num_seeds, empty.mean, empty.p) == (0, None, None)


def test_arms_are_paired_by_seed_and_nothing_is_lost_silently():
    first = {3: 1.0, 1: 2.0, 2: None, 4: float("nan"), 5: 1.0}
    second = {1: 0.5, 2: 1.0, 3: 3.0, 4: 1.0}
    pairs = pair(first, second)
    assert (pairs.seeds, pairs.differences, pairs.left_out) == ((1, 3), (1.5, -2.0), (2, 4, 5))


def test_cohens_d_of_the_differences():
    assert cohen_dz([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert cohen_dz([0.1] * 5) is None and cohen_dz([1.0]) is None


# Equivalence ---------------------------------------------------------------------------------


@given(
    values=st.lists(st.floats(-1, 1), min_size=2, max_size=12),
    margin=st.floats(0.01, 2.0),
)
@settings(max_examples=60)
def test_tost_is_two_t_tests_and_agrees_with_its_interval(values, margin):
    if np.std(values) < 1e-6:
        values = [*values, 2.0]
    result = tost(values, margin)
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    assert result.p == pytest.approx(max(below, above), abs=1e-12)
    assert result.interval.level == pytest.approx(0.9)
    if abs(result.p - 0.05) > 1e-9:
        assert result.inside == (result.p < 0.05)


def test_equal_differences_are_equivalent_or_not_without_doubt():
    assert (tost([0.5] * 3, 1.0).p, tost([0.5] * 3, 0.25).p) == (0.0, 1.0)


def test_tost_at_the_margin_claims_equivalence_at_most_as_often_as_alpha():
    data = rng(9).normal(0.02, 0.01, (3000, 8))
    claims = np.mean([tost(row, 0.02).inside for row in data])
    assert claims == pytest.approx(0.05, abs=0.013)  # three standard errors
