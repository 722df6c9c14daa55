"""The onset of lost plasticity: found where it was planted, and not told where there is none."""

import numpy as np
import pytest

from sparsecl.metrics.onset import onset

AFTER = (0, 1, 2, 5, 10, 20, 50)


def planted(rng, means, *, seeds=8, noise=0.01):
    """Losses [n, J] around means, with what a seed adds to all of its probes."""
    shape = (seeds, len(means))
    return np.array(means) + rng.normal(0, 0.1, (seeds, 1)) + rng.normal(0, noise, shape)


def test_by_hand():
    # Six seeds that agree to the last digit but one: after 5 phases all are worse by 0.2 to 0.3.
    fall, rise = np.array([0.0, -0.1, -0.2]), np.array([0.2, 0.3])
    rows = 3.0 + np.array([[*fall, *(rise + 0.01 * s)] for s in range(6)])
    found = onset(rows, (0, 1, 2, 5, 10), against="fresh", margin=0.05)
    assert (found.after, found.before, found.base, found.stays) == (5, 2, 0, True)
    assert found.difference == pytest.approx(0.225)  # mean of 0.20 ... 0.25
    # t_5 at 1 - 0.05 / 4 / 2 = 3.810; the standard deviation of 0 ... 5 is 1.8708.
    half = 3.810 * 0.018708 / 6**0.5
    assert found.interval.low == pytest.approx(0.225 - half, abs=1e-4)
    # Ten pairs: t_5 at 1 - 0.05 / 10 / 2 = 4.773, half a width of 0.0365.
    best = onset(rows, (0, 1, 2, 5, 10), against="best", margin=0.05)
    assert (best.after, best.base) == (5, 2) and best.difference == pytest.approx(0.425)
    assert best.text() == "5 (not at 2): +0.425 [0.389, 0.461] above its best, after 2"
    assert found.text().endswith("above a fresh model")


def test_a_planted_onset_is_found_where_it_is():
    rng = np.random.default_rng(0)
    # Better than fresh at first, from 10 phases on worse than its best, from 50 than fresh.
    means = [3.0, 2.9, 2.85, 2.85, 2.95, 2.99, 3.2]
    for _ in range(50):
        values = planted(rng, means)
        best = onset(values, AFTER, against="best", margin=0.05)
        fresh = onset(values, AFTER, against="fresh", margin=0.05)
        assert (best.after, best.before) == (10, 5) and best.base in (2, 5)
        assert (fresh.after, fresh.before, fresh.base) == (50, 20, 0)


def test_none_is_told_in_few_studies_without_one():
    rng = np.random.default_rng(1)
    flat = [planted(rng, [3.0] * len(AFTER), noise=0.1) for _ in range(400)]
    for against in ("fresh", "best"):
        told = [onset(values, AFTER, against=against).after is not None for values in flat]
        assert np.mean(told) < 0.05  # 0.025 at most, and three standard errors
    assert onset(flat[0], AFTER, against="best").text() == "none within 50"


def test_a_difference_within_the_margin_is_none():
    values = planted(np.random.default_rng(2), [3.0, 3.0, 3.04], noise=0.001)
    assert onset(values, (0, 1, 9), against="fresh", margin=0.05).after is None
    found = onset(values, (0, 1, 9), against="fresh", margin=0.03)
    assert found.after == 9 and found.stays


def test_one_that_does_not_stay_says_so():
    values = planted(np.random.default_rng(3), [3.0, 3.3, 2.9, 2.9], noise=0.001)
    found = onset(values, (0, 1, 2, 5), against="fresh", margin=0.05)
    assert found.after == 1 and not found.stays
    assert found.text().endswith("; not above it at every later probe")


def test_few_seeds_are_not_tested():
    values = planted(np.random.default_rng(4), [3.0, 9.0], seeds=5)
    found = onset(values, (0, 1), against="fresh")
    assert found.after is None and found.text() == "not tested: 5 seeds, 6 are needed"
    assert "no probe" in onset(values[[0] * 6, :1], (0,), against="best").text()


@pytest.mark.parametrize(
    ("loss", "after", "message"),
    [
        (np.zeros((6, 2)), (1, 2), "rise from 0"),
        (np.zeros((6, 3)), (0, 2, 2), "rise from 0"),
        (np.zeros((6, 2)), (0, 1, 2), "3 probes"),
        (np.full((6, 2), np.nan), (0, 1), "finite"),
    ],
)
def test_mistakes(loss, after, message):
    with pytest.raises(ValueError, match=message):
        onset(loss, after, against="fresh")
