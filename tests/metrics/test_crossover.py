"""Where the sparse curve goes below the dense one: by hand, planted, and planted not to be."""

import numpy as np
import pytest

from sparsecl.metrics.crossover import crossover, first_crossing, last_stretch, moving_average


def rng(seed=0):
    return np.random.default_rng(seed)


def cross(difference, **options):
    """Crossover of arms with this difference [J] or [n, J]; one seed has no interval."""
    rows = np.atleast_2d(np.asarray(difference, dtype=float))
    return crossover(rows + 2.0, np.full_like(rows, 2.0), rng=rng(1), **options)


def test_the_moving_average_takes_what_exists_at_the_edges():
    assert moving_average([3.0, 0.0, 6.0, 0.0]).tolist() == [1.5, 3.0, 2.0, 3.0]
    assert moving_average([[1.0, 2.0]], window=1).tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="odd and positive, got 2"):
        moving_average([1.0], window=2)


def test_three_in_a_row_by_hand():
    rows = np.array(
        [
            [1, -1, -1, 1, -1, -1, -1, 1],  # two are not enough
            [1, 1, 1, 1, 1, -1, -1, -1],  # the last three rounds are just enough
            [1, 1, 1, 1, 1, 1, -1, -1],  # the stream ends too early
            [1, 0, 0, 0, 1, 1, 1, 1],  # equal is not below
            [-1, -1, -1, 1, -1, -1, -1, -1],  # below, above, below for good
        ],
        dtype=float,
    )
    assert first_crossing(rows).tolist() == [4, 5, 8, 8, 0]
    assert last_stretch(rows).tolist() == [8, 5, 8, 8, 4]
    assert first_crossing(rows[:, :2]).tolist() == last_stretch(rows[:, :2]).tolist() == [2] * 5


def test_one_lucky_round_is_no_crossover():
    assert cross([1, 1, -2, 1, 1, 1, 1], window=1).round is None
    assert cross([1, 1, -2, 1, 1, 1, 1]).round is None
    # Smoothed: 1, 1, 0, -1/3, -1, -1, -1: zero is not yet below.
    found = cross([1, 1, 1, -2, 0, -1, -2])
    assert found.smoothed == pytest.approx([1, 1, 0, -1 / 3, -1, -1, -1.5])
    assert (found.round, found.stays, found.lasting_round) == (4, True, 4)


def test_a_crossover_that_does_not_last_is_told_apart():
    found = cross([1, -1, -1, -1, 1, 1, -1, -1, -1], window=1, first_round=0)
    assert (found.round, found.stays, found.lasting_round) == (1, False, 6)
    assert (found.first_round, found.last_round, found.num_rounds) == (0, 8, 9)
    assert found.text() == "round 1, one seed: no interval; not below to the end"


def planted(first_below, *, seed=0, n=8, num_rounds=20, noise=0.02):
    """Sparse and dense [n, J]: the difference falls through zero just before that round."""
    rounds = np.arange(1, num_rounds + 1)
    dense = 1.0 + 0.025 * rounds + rng(seed).normal(0, 0.1, (n, 1))  # shared by both arms
    gap = 0.04 * (first_below - 0.5 - rounds) + rng(seed + 1).normal(0, noise, (n, num_rounds))
    return dense + gap, np.broadcast_to(dense, gap.shape)


@pytest.mark.parametrize("first_below", [5, 12])
def test_a_planted_crossover_is_found(first_below):
    found = crossover(*planted(first_below), rng=rng(2))
    low, high = found.interval
    assert abs(found.round - first_below) <= 1 and found.stays
    assert low <= found.round <= high and low <= found.median <= high and high - low <= 3
    assert found.share == found.share_stays == 1.0
    assert found.text() == f"round {found.round} [{low}, {high}], 100 % of resamples"


def test_a_planted_none_is_not_found():
    sparse, dense = planted(40)
    none = crossover(sparse, dense, rng=rng(2))
    assert (none.round, none.lasting_round, none.stays) == (None, None, False)
    assert (none.interval, none.median, none.share) == ((None, None), None, 0.0)
    assert none.text() == "not within 20 rounds (crossed in 0 % of resamples)"
    # Equal arms: nothing is below zero, not even by rounding.
    assert crossover(sparse, sparse, rng=rng(2)).share == 0.0


def test_resamples_without_a_crossover_count_as_later():
    # Three seeds cross in round 4, the fourth never does and outweighs three of the others: the
    # mean of a resample goes below only if that seed is not drawn.
    crossing = [1.0, 1.0, 1.0, -1.0, -1.0, -1.0]
    found = cross([crossing] * 3 + [[6.0] * 6], window=1)
    assert found.round is None and found.interval == (4, None)
    assert found.share == pytest.approx((3 / 4) ** 4, abs=0.015)  # 0.316
    assert found.text().startswith("not within 6 rounds (crossed in 3")
    # A lighter one is outweighed unless it is drawn twice; the interval stays open to the right.
    found = cross([crossing] * 3 + [[2.0] * 6], window=1)
    assert (found.round, found.median, found.interval) == (4, 4, (4, None))
    assert found.share == pytest.approx((3 / 4) ** 4 + 4 * (1 / 4) * (3 / 4) ** 3, abs=0.02)
    assert found.text().startswith("round 4 [4, later than 6], 7")


def test_better_from_the_start_is_not_called_a_crossing():
    found = cross([[-1.0] * 5] * 3)
    assert found.round == 1 and found.from_start
    assert found.text() == ("round 1 [1, 1], 100 % of resamples; below from the first round on")


def test_curves_must_fit_and_be_finite():
    with pytest.raises(ValueError, match=r"got \(2, 5\) and \(3, 5\)"):
        crossover(np.zeros((2, 5)), np.zeros((3, 5)), rng=rng())
    curves = np.zeros((2, 5))
    curves[1, 3] = np.nan
    with pytest.raises(ValueError, match="curve 1 is not finite at round index 3"):
        crossover(curves, np.zeros((2, 5)), rng=rng())
