"""The Pareto front on points that can be drawn on paper."""

import numpy as np
import pytest

from sparsecl.metrics.pareto import front, pareto_front


def rng(seed=0):
    return np.random.default_rng(seed)


# name: (loss, accuracy)
PAPER = {
    "a": (1.0, 0.2),  # lowest loss
    "b": (2.0, 0.6),
    "c": (2.0, 0.5),  # same loss as b, less accurate
    "d": (3.0, 0.9),  # most accurate
    "e": (3.0, 0.9),  # the same point as d
    "f": (9.0, 0.1),
}


def test_the_front_by_hand():
    points = list(PAPER.values())
    assert front(points, ["lower", "higher"]).tolist() == [True, True, False, True, True, False]
    # Both directions turned: f is worst in both and now best in both.
    assert front(points, ["higher", "lower"]).tolist() == [False] * 5 + [True]
    # One column: only its best.
    assert front([[2.0], [1.0], [1.0]], ["lower"]).tolist() == [False, True, True]


def test_a_point_with_a_gap_is_never_on_the_front_and_dominates_nobody():
    points = [[0.0, np.nan], [1.0, 1.0], [np.nan, np.nan]]
    assert front(points, ["lower", "lower"]).tolist() == [False, True, False]
    assert not front([[np.nan]], ["lower"]).any()


def test_laws_of_the_front():
    points = rng(1).integers(0, 5, (60, 3)).astype(float)  # small integers: many ties
    better = ["lower", "higher", "lower"]
    member = front(points, better)
    signed = points * [1, -1, 1]
    for index, point in enumerate(signed):
        dominators = (signed <= point).all(axis=1) & (signed < point).any(axis=1)
        assert member[index] != dominators.any()
        # Whoever is off the front is dominated by somebody on it.
        assert member[index] or (dominators & member).any()
    order = rng(2).permutation(60)
    assert (front(points[order], better) == member[order]).all()


def test_membership_is_counted_over_resampled_seeds():
    seeds = np.zeros((8, 3, 2))
    seeds[:, 0] = [1.0, 1.0]  # always there
    seeds[:, 1] = [2.0, 2.0]  # always dominated
    # Its second column is below 1 unless the seed with 9 is drawn.
    seeds[:, 2] = [[2.0, 0.0]] * 7 + [[2.0, 9.0]]
    points = pareto_front(["good", "bad", "shaky"], seeds, ["lower", "lower"], rng=rng())
    assert [point.on_front for point in points] == [True, False, False]
    assert [point.share for point in points[:2]] == [1.0, 0.0]
    assert points[2].share == pytest.approx((7 / 8) ** 8, abs=0.02)
    assert points[2].values == (2.0, 1.125)


def test_equal_arms_share_their_membership():
    noise = rng(3).normal(0, 1, (7, 1, 3))
    twins = np.repeat(noise, 5, axis=1)
    points = pareto_front(list("abcde"), twins, ["lower"] * 3, draws=500, rng=rng())
    assert {(point.on_front, point.share) for point in points} == {(True, 1.0)}


def test_a_diverged_seed_keeps_its_arm_off_the_front():
    values = np.zeros((6, 2, 1))
    values[:, 0] = -1.0
    values[1, 0] = np.inf
    first, second = pareto_front(["diverged", "steady"], values, ["lower"], rng=rng())
    assert (first.values, first.on_front, first.share) == ((None,), False, 0.0)
    assert (second.on_front, second.share) == (True, 1.0)


@pytest.mark.parametrize("n", [1, 5])
def test_few_seeds_have_a_front_without_shares(n):
    points = pareto_front(list("ab"), [[[1.0], [2.0]]] * n, ["lower"], rng=rng())
    assert [(point.on_front, point.share) for point in points] == [(True, None), (False, None)]


def test_shapes_and_directions_are_checked():
    with pytest.raises(ValueError, match=r"\[seeds, 2 arms, 1 columns\], got shape \(2, 1\)"):
        pareto_front(list("ab"), [[1.0], [2.0]], ["lower"], rng=rng())
    with pytest.raises(ValueError, match="lower or higher, got 'less'"):
        front([[1.0]], ["less"])
