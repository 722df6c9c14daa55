"""Forgetting against density: the line, its uncertainty over seeds, and the rank correlation."""

import numpy as np
import pytest
from scipy import stats

from sparsecl.metrics.relation import density_relation

DENSITIES = [0.01, 0.05, 0.1, 0.3, 1.0]


def rng(seed=0):
    return np.random.default_rng(seed)


def study(seed=0, *, slope=0.1, n=8, between=0.05, within=0.02):
    """F [n, 5] of a planted line with an offset for each seed and noise for each run."""
    noise = rng(seed)
    line = 0.4 + slope * np.log10(DENSITIES)
    return line + noise.normal(0, between, (n, 1)) + noise.normal(0, within, (n, len(DENSITIES)))


def fit(forgetting, densities=DENSITIES, **options):
    return density_relation(densities, forgetting, **options)


def test_a_line_without_noise_is_found_exactly():
    found = fit(study(between=0, within=0), grid=[0.1, 1.0])
    assert (found.intercept, found.slope) == pytest.approx((0.4, 0.1))
    assert (found.r_squared, found.spearman) == pytest.approx((1.0, 1.0))
    assert found.line == pytest.approx((0.3, 0.4))
    for value, interval in [(0.4, found.intercept_interval), (0.1, found.slope_interval)]:
        assert (interval.low, interval.high) == pytest.approx((value, value))
    assert (found.num_seeds, found.num_points, found.num_missing) == (8, 40, 0)


def test_the_fit_is_that_of_scipy():
    forgetting = study(2)
    x, y = np.tile(np.log10(DENSITIES), 8), forgetting.ravel()
    line, ranks = stats.linregress(x, y), stats.spearmanr(x, y)
    found = fit(forgetting)
    assert (found.slope, found.intercept) == pytest.approx((line.slope, line.intercept))
    assert found.r_squared == pytest.approx(line.rvalue**2)
    assert found.spearman == pytest.approx(ranks.statistic)


def test_the_slope_of_a_complete_study_has_the_t_interval_of_its_seeds():
    forgetting = study(3, n=7)
    slopes = [stats.linregress(np.log10(DENSITIES), row).slope for row in forgetting]
    theirs = stats.ttest_1samp(slopes, 0.0).confidence_interval(0.95)
    found = fit(forgetting).slope_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


def test_the_jackknife_leaves_out_whole_seeds():
    """Against a plain loop, with a gap in one seed."""
    forgetting = study(3, n=6)
    forgetting[2, 1] = np.nan
    x = np.tile(np.log10(DENSITIES), (6, 1))

    def by_hand(rows):
        known = np.isfinite(forgetting[rows])
        line = stats.linregress(x[rows][known], forgetting[rows][known])
        ranks = stats.spearmanr(x[rows][known], forgetting[rows][known]).statistic
        return line.slope, line.intercept, line.intercept - line.slope, ranks

    every = list(range(6))
    left_out = np.array([by_hand([k for k in every if k != out]) for out in every])
    half = stats.t.ppf(0.975, 5) * np.sqrt(5 / 6 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    found = fit(forgetting, grid=[0.1])
    pairs = [found.slope_interval, found.intercept_interval, found.band[0]]
    for value, width, interval in zip(by_hand(every), half, pairs, strict=False):
        assert (interval.low, interval.high) == pytest.approx((value - width, value + width))
    ranks = found.spearman_interval
    assert ranks.low == pytest.approx(max(-1.0, by_hand(every)[3] - half[3]))


def test_offsets_of_seeds_widen_the_intercept_but_not_the_slope():
    """All densities of a seed move together, so a seed's offset cancels in the slope."""
    found = fit(study(between=0.5, within=0.0))
    assert found.slope_interval.high - found.slope_interval.low < 1e-9
    assert found.intercept_interval.high - found.intercept_interval.low > 0.1
    assert found.r_squared < 0.5


def test_a_planted_relation_is_found_and_a_planted_null_is_not():
    noise = study(5, slope=0.0) - 0.4
    mirrored = np.concatenate([noise, -noise])  # no slope by chance either
    null, found = fit(mirrored), fit(mirrored + 0.1 * np.log10(DENSITIES))
    assert found.slope_interval.contains(0.1) and found.slope_interval.low > 0.05
    assert found.spearman_interval.low > 0.5
    assert null.slope_interval.contains(0.0) and null.spearman_interval.contains(0.0)


def test_the_slope_interval_covers_as_often_as_it_says():
    hits = [
        density_relation(DENSITIES, study(seed, n=6), grid=[1.0]).slope_interval.contains(0.1)
        for seed in range(400)
    ]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.035)  # three standard errors


def test_the_band_is_centred_on_the_line_and_spans_the_densities():
    found = fit(study(6))
    assert (found.grid[0], found.grid[-1], len(found.grid)) == pytest.approx((0.01, 1.0, 50))
    assert all(at.low < line < at.high for at, line in zip(found.band, found.line, strict=True))
    assert found.band[-1].low == pytest.approx(found.intercept_interval.low)


def test_missing_points_are_left_out_and_counted():
    gaps = study(7).astype(object)
    gaps[0, 1], gaps[1, 2], gaps[2, :] = None, float("nan"), None
    found = fit(gaps.tolist())
    assert (found.num_seeds, found.num_points, found.num_missing) == (7, 33, 7)
    table = gaps.astype(float)
    known = np.isfinite(table)
    x = np.broadcast_to(np.log10(DENSITIES), table.shape)[known]
    assert found.slope == pytest.approx(stats.linregress(x, table[known]).slope)
    assert found.spearman == pytest.approx(stats.spearmanr(x, table[known]).statistic)


def test_a_line_that_hangs_on_one_seed_has_no_interval():
    # All but the last seed have one density only: without it there is no line.
    table = [[0.1, np.nan, np.nan]] * 6 + [[0.1, 0.2, 0.3]]
    found = fit(table, [0.01, 0.1, 1.0])
    assert found.slope == pytest.approx(0.1)
    assert (found.slope_interval, found.intercept_interval, found.band) == (None, None, None)


@pytest.mark.parametrize("n", [1, 5])
def test_few_seeds_have_a_line_and_no_interval(n):
    found = fit([[0.1, 0.2, 0.3]] * n, [0.01, 0.1, 1.0])
    assert (found.slope, found.intercept) == pytest.approx((0.1, 0.3))
    assert (found.slope_interval, found.intercept_interval) == (None, None)
    assert (found.spearman_interval, found.band) == (None, None)


def test_no_spread_no_correlation():
    flat = fit(np.full((4, 5), 0.1))
    assert flat.slope == pytest.approx(0.0, abs=1e-12)
    assert (flat.r_squared, flat.spearman, flat.spearman_interval) == (None, None, None)


@pytest.mark.parametrize(
    ("densities", "table", "message"),
    [
        ([0.1, 1.0], [[0.1, 0.2]], "3 or more different densities, got 2"),
        ([0.1, 0.1, 1.0], [[0.1, 0.2, 0.3]], "got 2"),
        ([0.1, 0.5, 1.0], [[0.1, None, 0.3]], "got 2"),
        ([0.1, 0.5, 1.0], [[None] * 3], "got 0"),
        ([0.1, 0.5, 10], [[0.1, 0.2, 0.3]], r"density must be in \(0, 1\], got 10"),
        ([0.1, 0.5, 1.0], [[0.1, 0.2]], r"got shape \(1, 2\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(densities, table, message):
    with pytest.raises(ValueError, match=message):
        fit(table, densities)
