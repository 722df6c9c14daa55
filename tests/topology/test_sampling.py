"""Draws without replacement: exact counts, right probabilities, bits free of chunks."""

import itertools

import numpy as np
import pytest
from scipy import stats

from sparsecl import seeding
from sparsecl.topology.sampling import add_cells, choose_cells, choose_per_row, spread_degrees


@pytest.mark.parametrize("total", [0, 1, 7, 8, 10, 24])
def test_spread_is_even_and_exact(total):
    degrees = spread_degrees(8, total, seeding.stream(0))
    assert degrees.sum() == total
    assert set(degrees) <= {total // 8, -(-total // 8)}


def test_the_larger_degrees_fall_anywhere():
    rng = seeding.stream(0, "spread")
    counts = sum(spread_degrees(5, 7, rng) for _ in range(1000))
    assert stats.chisquare(counts - 1000).pvalue > 1e-3  # 2 of 5 units get 2 links


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("degrees", [[0, 3, 1, 5], [5, 5, 5, 5], [0, 0, 0, 0], [1, 1, 2, 1]])
def test_each_row_has_its_degree(degrees, weighted):
    log_weights = -np.arange(5.0) if weighted else None
    chosen = choose_per_row(5, np.array(degrees), seeding.stream(1), log_weights)
    assert chosen.shape == (4, 5)
    assert chosen.sum(axis=1).tolist() == degrees


@pytest.mark.parametrize("degree", [2, 3])  # 3 of 5: the absent ones are drawn
def test_equal_weights_visit_all_sets_equally(degree):
    chosen = choose_per_row(5, np.full(10_000, degree), seeding.stream(0, "sets"))
    keys = chosen @ (1 << np.arange(5))
    _, counts = np.unique(keys, return_counts=True)
    assert counts.size == 10
    assert stats.chisquare(counts).pvalue > 1e-3


def test_weights_give_sequential_sampling():
    # Weights 0.5, 0.3, 0.2 and two picks. P({0, 1}) = 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7 = 0.5143.
    weights = np.array([0.5, 0.3, 0.2])
    chosen = choose_per_row(3, np.full(40_000, 2), seeding.stream(0, "pairs"), np.log(weights))
    for a, b in itertools.combinations(range(3), 2):
        p = weights[a] * weights[b] * (1 / (1 - weights[a]) + 1 / (1 - weights[b]))
        share = (chosen[:, a] & chosen[:, b]).mean()
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / 40_000)
    assert 0.5 * 0.3 / 0.5 + 0.3 * 0.5 / 0.7 == pytest.approx(0.5143, abs=1e-4)


def test_weights_may_span_thousands_of_decades():
    log_weights = -5000.0 * np.arange(6)
    chosen = choose_per_row(6, np.full(50, 3), seeding.stream(0), log_weights)
    assert (chosen == [True, True, True, False, False, False]).all()


@pytest.mark.parametrize("constant", ["chunk", "deadline"])
def test_chunks_and_deadline_do_not_change_the_bits(monkeypatch, constant):
    def draw():
        degrees = np.arange(90) % 12  # rows with few picks and a common deadline
        return choose_per_row(40, degrees, seeding.stream(5), -np.log1p(np.arange(40.0)))

    whole = draw()
    if constant == "chunk":
        monkeypatch.setattr("sparsecl.topology.sampling.CHUNK_CELLS", 77)
    else:  # no early arrivals at all: every row is looked at in full
        name = "sparsecl.topology.sampling._arrival_probability"
        monkeypatch.setattr(name, lambda log_weights, degree: np.zeros(log_weights.size))
    assert (draw() == whole).all()


@pytest.mark.parametrize(("taken", "count"), [(0, 3), (2, 1), (3, 5), (8, 2), (9, 1)])
def test_cells_are_added_to_free_places(taken, count):
    cells = np.arange(10) < taken
    add_cells(cells, count, seeding.stream(taken))
    assert cells[:taken].all() and cells.sum() == taken + count


def test_one_free_cell_among_many_is_found_at_once():
    cells = np.ones(1_000_000, dtype=bool)
    cells[77] = False
    add_cells(cells, 1, seeding.stream(0))
    assert cells.all()
    assert choose_cells(1_000_000, 999_999, seeding.stream(0)).sum() == 999_999
