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
    return density_relation(densities, forgetting, rng=rng(1), **options)


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


def test_the_bootstrap_draws_whole_seeds():
    """Against a plain loop over resampled rows, ties of repeated seeds included."""
    forgetting = study(3, n=5)
    x = np.log10(DENSITIES)
    picks = rng(1).integers(0, 5, size=(300, 5))
    fits = [stats.linregress(np.tile(x, 5), forgetting[pick].ravel()) for pick in picks]
    ranks = [stats.spearmanr(np.tile(x, 5), forgetting[p].ravel()).statistic for p in picks]
    found = fit(forgetting, draws=300, grid=[0.1])
    for values, interval in [
        ([line.slope for line in fits], found.slope_interval),
        ([line.intercept for line in fits], found.intercept_interval),
        ([line.intercept - line.slope for line in fits], found.band[0]),
        (ranks, found.spearman_interval),
    ]:
        expected = np.quantile(values, [0.025, 0.975])
        assert (interval.low, interval.high) == pytest.approx(tuple(expected))


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


def test_the_slope_interval_covers_about_as_often_as_it_says():
    hits = [
        density_relation(
            DENSITIES, study(seed, n=10), grid=[1.0], draws=400, rng=rng(seed)
        ).slope_interval.contains(0.1)
        for seed in range(300)
    ]
    assert 0.85 < np.mean(hits) < 0.97  # theory about 0.91 for 10 seeds, standard error 0.016


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


def test_resamples_of_one_density_are_left_out():
    # Seed 0 has one density only: if it is drawn alone there is no line.
    table = [[0.1, np.nan, np.nan], [0.1, 0.2, 0.3]]
    found = fit(table, [0.01, 0.1, 1.0])
    assert (found.slope, found.slope_interval.low) == pytest.approx((0.1, 0.1))


def test_one_seed_has_a_line_and_no_interval():
    found = fit([[0.1, 0.2, 0.3]], [0.01, 0.1, 1.0])
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
