"""Bootstrap intervals: by hand on two seeds, against SciPy, and their coverage in simulation."""

import numpy as np
import pytest
from scipy import stats

from sparsecl.metrics import bootstrap as boot
from sparsecl.metrics.bootstrap import (
    bca_interval,
    bootstrap,
    bootstrap_means,
    estimate_mean,
    hierarchical_means,
    jackknife_interval,
    percentile_interval,
    seed_counts,
    t_interval,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def normal(seed, n=10):
    return rng(seed).normal(0.3, 1.0, n)


def test_two_seeds_have_three_resampled_means():
    means = bootstrap_means([0.0, 1.0], draws=4000, rng=rng())
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    # Probabilities 1/4, 1/2, 1/4; four standard errors of a share are 0.03.
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_counts_say_how_often_each_seed_was_drawn():
    counts = seed_counts(np.array([[0, 2, 2], [1, 1, 1]]), 3)
    assert counts.tolist() == [[1, 0, 2], [0, 3, 0]]


def test_a_statistic_sees_every_resample_once_whatever_the_block(monkeypatch):
    data = normal(1)

    def medians(indices):
        return np.median(data[indices], axis=1)

    whole = bootstrap(medians, 10, draws=2500, rng=rng(3))
    assert whole.shape == (2500,)
    monkeypatch.setattr(boot, "BLOCK", 7)
    assert (bootstrap(medians, 10, draws=2500, rng=rng(3)) == whole).all()
    assert not (bootstrap(medians, 10, draws=2500, rng=rng(4)) == whole).all()


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_the_intervals_are_those_of_scipy(method):
    data = np.exp(normal(2, 12))  # skewed, so that BCa differs from percentile
    ours = estimate_mean(data, draws=20_000, rng=rng(1))
    theirs = stats.bootstrap((data,), np.mean, n_resamples=20_000, method=method, rng=rng(1))
    mine = ours.percentile if method == "percentile" else ours.bca
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert mine.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert mine.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    assert ours.bca.high > ours.percentile.high + 0.05 * width  # the test can tell them apart


def test_the_t_interval_is_that_of_scipy():
    data = normal(3, 7)
    theirs = stats.ttest_1samp(data, 0.0).confidence_interval(0.9)
    mine = t_interval(data, 0.9)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high))
    assert mine.contains(float(data.mean())) and not mine.contains(mine.high + 1e-9)


def test_coverage_for_ten_normal_seeds():
    """A nominal 95 % interval covers 90-95 % by bootstrap and 95 % by Student's t."""
    trials = 1500
    data = rng(5).normal(0.0, 1.0, (trials, 10))
    hits = np.zeros((trials, 2))
    counts = seed_counts(rng(6).integers(0, 10, (2000, 10)), 10)
    means = data @ counts.T / 10
    for row, (sample, draws) in enumerate(zip(data, means, strict=True)):
        jackknife = (sample.sum() - sample) / 9
        hits[row, 0] = percentile_interval(draws).contains(0.0)
        hits[row, 1] = bca_interval(draws, sample.mean(), jackknife).contains(0.0)
    percentile, bca = hits.mean(axis=0)
    assert 0.88 < percentile < 0.95  # standard error 0.007; theory about 0.91
    assert 0.88 < bca < 0.95
    exact = np.mean([t_interval(sample).contains(0.0) for sample in data])
    assert exact == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("n", "known"), [(1, ()), (5, ()), (6, ("t",)), (9, ("t",)), (10, ("t", "percentile", "bca"))]
)
def test_seeds_have_the_intervals_that_they_support(n, known):
    found = estimate_mean(normal(8, n), rng=rng())
    assert (found.sd is None) == (n == 1)
    assert tuple(k for k in ("t", "percentile", "bca") if getattr(found, k) is not None) == known


def test_the_jackknife_of_a_mean_is_the_t_interval():
    data = normal(3, 7)
    left_out = [np.delete(data, k).mean() for k in range(7)]
    mine, known = jackknife_interval(data.mean(), left_out, 0.9), t_interval(data, 0.9)
    assert (mine.low, mine.high) == pytest.approx((known.low, known.high))


def test_equal_seeds_give_an_interval_of_width_zero():
    same = estimate_mean([0.1] * 10, rng=rng())
    for interval in (same.percentile, same.bca, same.t):
        assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))


def test_one_order_for_each_seed_is_the_plain_bootstrap():
    data = normal(4)
    plain = bootstrap_means(data, rng=rng(1), draws=500)
    assert hierarchical_means([[v] for v in data], rng=rng(1), draws=500) == pytest.approx(plain)


def test_orders_inside_seeds_are_resampled_too():
    # Two equal seeds of orders (0, 1): only the inner draws vary the mean of four coin flips.
    means = hierarchical_means([[0.0, 1.0], [0.0, 1.0]], draws=8000, rng=rng())
    assert set(means) == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert means.mean() == pytest.approx(0.5, abs=0.02)
    assert means.var() == pytest.approx(1 / 16, rel=0.1)  # 1/4 for a flip, over 4 flips
    # A seed of one order weighs as much as a seed of three.
    assert set(hierarchical_means([[4.0], [0.0, 0.0, 0.0]], draws=200, rng=rng())) == {0, 2, 4}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_means([1.0], rng=rng()), "at least 2 seeds, got 1"),
        (lambda: bootstrap_means([1.0, 2.0], draws=0, rng=rng()), "draws must be >= 1"),
        (lambda: estimate_mean([1.0, np.nan], rng=rng()), "finite"),
        (lambda: estimate_mean([], rng=rng()), "no seed"),
        (lambda: t_interval([1.0, 2.0], level=95), "For 95 % write 0.95"),
        (lambda: hierarchical_means([[1.0], []], rng=rng()), "at least one domain order"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
