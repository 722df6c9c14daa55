"""Ranks by hand, then what must not change them."""

import math

import numpy as np
import pytest

from sparsecl.metrics.ranks import RANKS, rank_figures, singular_values


def figures(values: list[float]) -> list[float]:
    """erank, srank99, arank99, stable_rank_F."""
    return [rank(values) for rank in RANKS.values()]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 1.0], [1.7548, 2, 2, 10 / 9]),  # methods with the same name differ here
        ([1.0, 1.0, 1.0, 0.0], [3, 3, 3, 3]),
        ([5.0, 0.0, 0.0], [1, 1, 1, 1]),
        ([1.0] * 100, [100, 99, 99, 100]),
        ([1.0] * 150, [150, 149, 149, 150]),  # ceil(148.5)
        # A long tail: one strong direction for the squares, many for the plain values.
        ([100.0] + [1.0] * 100, [math.exp(0.5 * math.log(4) + 0.5 * math.log(100)), 99, 1, 1.01]),
        ([0.0, 0.0], [0, 0, 0, 0]),
    ],
)
def test_singular_values_by_hand(values, expected):
    assert figures(values) == pytest.approx(expected, rel=1e-4)
    # The order is not asked for, and the unit of H does not matter.
    assert figures([1e-30 * value for value in reversed(values)]) == pytest.approx(
        expected, rel=1e-4
    )


def test_a_gram_matrix_by_hand():
    # H = [[3, 0], [0, 1], [0, 0]], so H^T H = diag(9, 1) and H H^T = diag(9, 1, 0).
    assert singular_values(np.diag([1.0, 9.0])).tolist() == [3.0, 1.0]
    expected = {"erank": 1.7548, "srank99": 2.0, "arank99": 2.0, "stable_rank_F": 10 / 9}
    for gram in (np.diag([1.0, 9.0]), np.diag([0.0, 9.0, 1.0])):
        assert rank_figures(gram) == pytest.approx(expected, rel=1e-4)


def test_h_is_not_centred():
    constant = np.ones((8, 3))  # centred, it would be nothing
    assert rank_figures(constant.T @ constant) == pytest.approx(dict.fromkeys(RANKS, 1.0))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_laws(shape):
    rng = np.random.default_rng(0)
    h = rng.standard_normal(shape) @ np.diag(1.0 / np.arange(1, shape[1] + 1))
    found = rank_figures(h.T @ h)
    exact = np.linalg.svd(h, compute_uv=False)
    assert found == pytest.approx(
        {name: rank(exact) for name, rank in RANKS.items()}, rel=1e-6, abs=0
    )
    assert rank_figures(h @ h.T) == pytest.approx(found, rel=1e-6)
    mixed = 7.0 * h[rng.permutation(shape[0])][:, rng.permutation(shape[1])]
    assert rank_figures(mixed.T @ mixed) == pytest.approx(found, rel=1e-6)
    assert all(1.0 <= value <= min(shape) for value in found.values())


def test_only_square_matrices_are_gram_matrices():
    with pytest.raises(ValueError, match=r"square, got \(3, 2\)"):
        rank_figures(np.ones((3, 2)))
