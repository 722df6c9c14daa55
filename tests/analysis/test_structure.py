"""Path counts: by hand, by enumeration, and in closed form where everything is dense."""

import itertools
import math

import numpy as np
import pytest

from sparsecl.analysis.structure import ChainMatrix, chain_paths, mlp_chain, paths_through
from sparsecl.topology.layer import LayerShape, LayerTopology

FIRST = [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
SECOND = [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def matrix(rows):
    mask = np.array(rows, dtype=bool)
    return ChainMatrix(*mask.shape, mask)


def dense(out_features, in_features):
    return ChainMatrix(out_features, in_features, None)


def counts(chain, index):
    """Paths through each weight, as whole numbers."""
    return np.rint(10.0 ** paths_through(chain, index)).astype(int).tolist()


def enumerate_paths(chain):
    """All paths, each as the units that it passes."""
    sizes = [chain[0].in_features, *(one.out_features for one in chain)]
    return [
        units
        for units in itertools.product(*map(range, sizes))
        if all(one.mask[units[k + 1], units[k]] for k, one in enumerate(chain))
    ]


def test_two_matrices_of_3_x_3_by_hand():
    # Unit 0 of the middle is reached by 2 inputs and feeds 2 outputs; 1 by one and feeds one;
    # 2 is reached by one input and feeds nothing, so its weight is on no path.
    chain = [matrix(FIRST), matrix(SECOND)]
    assert counts(chain, 0) == [[2, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert counts(chain, 1) == [[2, 0, 0], [2, 1, 0], [0, 0, 0]]
    found = chain_paths(chain)
    assert (found.num_matrices, found.num_live, found.num_cells) == (2, 7, 18)
    assert 10**found.paths_log10 == pytest.approx(5)  # 2 * 2 + 1
    assert 10**found.paths_per_weight_log10 == pytest.approx(10 / 7)  # sum of both tables / 7
    assert found.without_path == 1 / 7
    assert 10**found.share_of_own_paths_log10 == pytest.approx(2 / 7)
    assert 10**found.paths_ratio_to_dense_log10 == pytest.approx(10 / 7 / 3)  # dense: 3 each
    assert found.rho_power == 7 / 18


def test_a_random_chain_by_enumeration():
    rng = np.random.default_rng(0)
    chain = [matrix(rng.random(size) < 0.6) for size in ((4, 3), (2, 4), (4, 2), (3, 4))]
    paths = enumerate_paths(chain)
    on_path = 0
    for k, one in enumerate(chain):
        expected = np.zeros(one.mask.shape, dtype=int)
        for units in paths:
            expected[units[k + 1], units[k]] += 1
        assert counts(chain, k) == expected.tolist()
        on_path += np.count_nonzero(expected)
    found = chain_paths(chain)
    assert 10**found.paths_log10 == pytest.approx(len(paths))
    assert 0 < found.without_path == pytest.approx(1 - on_path / found.num_live)


@pytest.mark.parametrize("given", ["none", "full"])
def test_dense_is_the_closed_form(given):
    sizes = [3, 5, 3, 5, 3]
    chain = [dense(*size) for size in zip(sizes[1:], sizes, strict=False)]
    if given == "full":
        chain = [matrix(np.ones((one.out_features, one.in_features))) for one in chain]
    found = chain_paths(chain)
    assert found.paths_log10 == pytest.approx(math.log10(math.prod(sizes)))
    assert found.paths_ratio_to_dense_log10 == pytest.approx(0, abs=1e-12)
    assert 10**found.share_of_own_paths_log10 == pytest.approx(1 / 15)
    assert (found.rho_power, found.without_path) == (1, 0)
    np.testing.assert_allclose(10 ** paths_through(chain, 1), math.prod(sizes) / 15)


def test_equal_degrees_give_the_power_of_the_density():
    # Every unit of 8 has two inputs and two outputs.
    ring = np.eye(8, dtype=bool) | np.roll(np.eye(8, dtype=bool), 1, axis=0)
    found = chain_paths([matrix(ring)] * 6)
    assert 10**found.paths_ratio_to_dense_log10 == pytest.approx(found.rho_power) == 0.25**5
    # Of its own paths, a weight carries 1 / (rho n^2).
    assert 10**found.share_of_own_paths_log10 == pytest.approx(1 / (0.25 * 64))
    assert 10**found.share_of_own_paths_dense_log10 == pytest.approx(1 / 64)


def test_a_cut_chain_has_no_paths():
    found = chain_paths([matrix([[1, 0], [0, 0]]), matrix([[0, 1], [0, 1]])])
    assert found.paths_log10 is found.paths_per_weight_log10 is None
    assert found.paths_ratio_to_dense_log10 is found.share_of_own_paths_log10 is None
    assert found.without_path == 1


def test_counts_beyond_every_float():
    full = np.ones((100, 100), dtype=bool)
    for one in (dense(100, 100), matrix(full)):
        found = chain_paths([one] * 400)
        assert found.paths_log10 == pytest.approx(802)
        assert found.paths_per_weight_log10 == pytest.approx(798)


def test_the_chain_of_a_model_is_its_feed_forward_part():
    shapes = [
        LayerShape("0.v", "v", 2, 2),
        LayerShape("0.up", "up", 4, 2),
        LayerShape("0.down", "down", 2, 4),
        LayerShape("1.up", "up", 4, 2),
    ]
    live = LayerTopology("0.down", 2, 4, np.array([1, 6]))
    chain = mlp_chain({"0.down": live}, shapes)
    assert [one[:2] for one in chain] == [(4, 2), (2, 4), (4, 2)]
    assert chain[0].mask is chain[2].mask is None
    assert (chain[1].mask == live.mask()).all()
    assert 10 ** chain_paths(chain).paths_log10 == pytest.approx(2 * 2 * 4)  # two live weights
