"""Expanders: exact degrees on both sides, the spectrum, shapes on which swaps get stuck."""

import math

import numpy as np
import pytest

from sparsecl import seeding
from sparsecl.topology import expander as module
from sparsecl.topology import matching
from sparsecl.topology.expander import biregular_degrees, expander, second_singular_value
from sparsecl.topology.matching import match_degrees
from sparsecl.topology.sampling import spread_degrees


def mask_of(shape, seed=0, **options):
    mask = np.zeros(shape, dtype=bool)
    mask.reshape(-1)[expander(*shape, rng=seeding.stream(seed), **options)] = True
    return mask


@pytest.mark.parametrize("rho", [0.25, 0.4, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("shape", [(32, 32), (64, 16), (24, 36)])
def test_biregular_degrees_are_exact(shape, rho):
    row_degree, column_degree = biregular_degrees(*shape, rho)
    mask = mask_of(shape, rho=rho)
    assert set(mask.sum(axis=1)) == {row_degree}
    assert set(mask.sum(axis=0)) == {column_degree}
    assert abs(mask.mean() - rho) <= 0.5 / math.gcd(*shape)


@pytest.mark.parametrize(
    ("shape", "rho", "degrees"),
    [((768, 768), 0.05, (38, 38)), ((3072, 768), 0.05, (38, 152)), ((6, 4), 0.5, (2, 3))],
)
def test_degrees_nearest_to_the_density(shape, rho, degrees):
    assert biregular_degrees(*shape, rho) == degrees


def test_a_density_that_no_biregular_graph_has():
    with pytest.raises(ValueError, match=r"^density 0.1: .* density 1\. .*near_biregular"):
        expander(7, 9, rho=0.1, rng=seeding.stream(0))


@pytest.mark.parametrize("rho", [0.01, 0.1, 0.45, 0.8, 1.0])
@pytest.mark.parametrize("shape", [(1, 7), (3, 3), (5, 4), (13, 31), (64, 48)])
def test_near_biregular_is_exact_in_count_and_even_in_degrees(shape, rho):
    total = round(rho * shape[0] * shape[1])
    mask = mask_of(shape, rho=rho, form="near_biregular")
    assert mask.sum() == total
    for axis, size in ((0, shape[1]), (1, shape[0])):
        assert set(mask.sum(axis=axis)) <= {total // size, -(-total // size)}


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (16, 16)])
def test_xnet_is_regular_on_the_smaller_side_only(shape):
    mask = mask_of(shape, rho=0.2, form="xnet")
    small, large = (1, 0) if shape[0] <= shape[1] else (0, 1)
    assert set(mask.sum(axis=small)) == {round(0.2 * max(shape))}
    assert len(set(mask.sum(axis=large))) > 1


@pytest.mark.parametrize("form", ["biregular", "xnet"])
def test_whole_degrees_that_are_far_from_the_density_are_refused(form):
    assert mask_of((768, 768), rho=0.01, form=form).sum() == 8 * 768  # 7.68 a row: 4 % more
    with pytest.raises(ValueError, match="density 0.04: the nearest .* near_biregular"):
        expander(16, 16, rho=0.04, rng=seeding.stream(0), form=form)
    assert mask_of((768, 768), rho=0.01, form="near_biregular").sum() == round(0.01 * 768**2)


@pytest.mark.parametrize("size", range(1, 8))
def test_tiny_graphs_terminate_with_exact_degrees(size):
    # Swaps get stuck on shapes like these, and the dealt graph takes over.
    for total in range(size * 5 + 1):
        rng = seeding.stream(total, size)
        rows, columns = spread_degrees(size, total, rng), spread_degrees(5, total, rng)
        mask = match_degrees(rows, columns, rng)
        assert (mask.sum(axis=1) == rows).all() and (mask.sum(axis=0) == columns).all()


def test_the_dealt_graph_has_exact_degrees_too(monkeypatch):
    monkeypatch.setattr(matching, "MAX_ROUNDS", 0)
    for total in (0, 1, 17, 40, 59):
        rng = seeding.stream(total)
        rows, columns = spread_degrees(6, total, rng), spread_degrees(10, total, rng)
        mask = match_degrees(rows, columns, rng)
        assert (mask.sum(axis=1) == rows).all() and (mask.sum(axis=0) == columns).all()


def test_all_permutations_are_drawn():
    # 3 x 3 of degree 1: six graphs. An even shuffle gives each 200 +- 13 of 1200.
    rng = seeding.stream(0, "permutations")
    found: dict[tuple[int, ...], int] = {}
    for _ in range(1200):
        key = tuple(expander(3, 3, rho=1 / 3, rng=rng).tolist())
        found[key] = found.get(key, 0) + 1
    assert len(found) == 6 and min(found.values()) > 145 and max(found.values()) < 255


def test_the_estimate_is_a_lower_bound_that_finds_an_outlier():
    mask = mask_of((96, 96), rho=0.25)
    two = np.kron(np.eye(2, dtype=bool), mask)  # two components: sigma_2 = sigma_1 = 24
    for graph, share in ((mask, 0.8), (two, 0.999)):
        exact = np.linalg.svd(graph.astype(float), compute_uv=False)[1]
        edges = np.flatnonzero(graph)
        estimate = second_singular_value(*graph.shape, edges, seeding.stream(0))
        assert share * exact < estimate < exact * (1 + 1e-9)


@pytest.mark.parametrize("draws", [1, 4, 10])
def test_the_best_of_ten_is_kept(monkeypatch, draws):
    # Estimates 10 - k while the bound is about 5.7 (degree 9): accepted at k = 5, else the last.
    drawn = []
    monkeypatch.setattr(module, "NUM_DRAWS", draws)

    def estimate(out_features, in_features, edges, rng):
        drawn.append(edges)
        return 10.0 - len(drawn)

    monkeypatch.setattr(module, "second_singular_value", estimate)
    edges = expander(36, 36, rho=0.25, rng=seeding.stream(0))
    accepted = math.ceil(10 - 1.02 * 2 * math.sqrt(8))
    assert len(drawn) == min(draws, accepted) and edges is drawn[-1]
