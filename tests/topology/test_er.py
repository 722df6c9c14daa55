"""Random graphs: exact counts, right distribution, same bits for the same stream."""

import numpy as np
import pytest
from scipy import stats

from sparsecl import seeding
from sparsecl.topology.er import CHUNK_CELLS, er_bernoulli, er_fixed


def test_all_live_at_density_one():
    for draw in (er_fixed, er_bernoulli):
        edges = draw(2, 4, rho=1.0, rng=seeding.stream(0))
        assert edges.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
        assert edges.dtype == np.int64


@pytest.mark.parametrize("rho", [0.01, 0.25, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("shape", [(2, 4), (16, 12), (3, 101)])
def test_er_fixed_has_the_exact_count(shape, rho):
    edges = er_fixed(*shape, rho=rho, rng=seeding.stream(3, "x"))
    assert edges.size == round(rho * shape[0] * shape[1])
    assert (np.diff(edges) > 0).all()
    assert edges.size == 0 or (edges[0] >= 0 and edges[-1] < shape[0] * shape[1])


@pytest.mark.parametrize("rho", [0.25, 0.75])
def test_er_fixed_visits_all_sets_equally(rho):
    # 8 cells, 2 (or 6) live: 28 sets. Also checks pairs, which single positions would not.
    rng = seeding.stream(0, "sets")
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(5600):
        key = tuple(er_fixed(2, 4, rho=rho, rng=rng).tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 28
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_er_fixed_positions_are_uniform_in_a_large_matrix():
    edges = er_fixed(512, 512, rho=0.1, rng=seeding.stream(1, "positions"))
    counts = np.bincount(edges // 1024, minlength=256)
    # Without replacement the spread is (1 - rho) of the multinomial one.
    statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum() / 0.9
    assert 1e-3 < stats.chi2.sf(statistic, 255) < 1 - 1e-3


def test_er_bernoulli_density_and_degree_variance():
    num_rows, num_columns, rho = 1500, 800, 0.05
    edges = er_bernoulli(num_rows, num_columns, rho=rho, rng=seeding.stream(2, "b"))
    num_cells = num_rows * num_columns
    assert num_cells > CHUNK_CELLS  # more than one chunk is drawn
    sd = np.sqrt(rho * (1 - rho) / num_cells)
    assert abs(edges.size / num_cells - rho) < 4 * sd
    degrees = np.bincount(edges // num_columns, minlength=num_rows)
    expected = num_columns * rho * (1 - rho)
    assert abs(degrees.var(ddof=1) / expected - 1) < 4 * np.sqrt(2 / num_rows)


def test_chunks_do_not_change_the_bits(monkeypatch):
    whole = er_bernoulli(30, 40, rho=0.3, rng=seeding.stream(5))
    monkeypatch.setattr("sparsecl.topology.er.CHUNK_CELLS", 77)
    assert (er_bernoulli(30, 40, rho=0.3, rng=seeding.stream(5)) == whole).all()


@pytest.mark.parametrize("rho", [0.0, -0.1, 85.0, float("nan")])
def test_a_density_outside_the_range_is_refused(rho):
    for draw in (er_fixed, er_bernoulli):
        with pytest.raises(ValueError, match="rho must be in"):
            draw(2, 4, rho=rho, rng=seeding.stream(0))
