"""Singular values of masks: by hand, against a full decomposition, against published numbers."""

import math

import numpy as np
import pytest

from sparsecl.topology.er import er_fixed
from sparsecl.topology.layer import LayerTopology
from sparsecl.topology.spectrum import (
    average,
    layer_spectrum,
    ramanujan_bound,
    spectrum_table,
    top_singular_values,
)


def topology(mask):
    mask = np.asarray(mask, dtype=bool)
    return LayerTopology("layer", *mask.shape, np.flatnonzero(mask))


def er(out_features, in_features, rho, seed):
    rng = np.random.default_rng(seed)
    edges = er_fixed(out_features, in_features, rho=rho, rng=rng)
    return LayerTopology("er", out_features, in_features, edges)


def ring(size, reach):
    """Row i lives at the `2 * reach + 1` columns around i: every value but the first is a pair."""
    offsets = np.arange(size)[:, None] - np.arange(size)[None]
    return np.minimum(offsets % size, -offsets % size) <= reach


def test_by_hand():
    # Two full blocks of 2 x 2: each has the one value 2, so nothing passes between them.
    blocks = layer_spectrum(topology(np.kron(np.eye(2), np.ones((2, 2)))), num_values=3)
    assert blocks.singular_values == pytest.approx((2.0, 2.0, 0.0))
    assert blocks.ramanujan_bound == 2.0 and blocks.within_bound
    assert blocks.gap == pytest.approx(0.0)
    # All 8 weights of 2 x 4: rank one, sigma_1 = sqrt(d_r * d_c) = sqrt(4 * 2).
    full = layer_spectrum(topology(np.ones((2, 4))))
    assert full.singular_values == pytest.approx((math.sqrt(8), 0.0))
    assert full.gap == 1.0
    assert full.ramanujan_bound == math.sqrt(3) + 1
    assert (full.er_sigma_1, full.er_sigma_2) == (math.sqrt(8), 0.0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 2)])
def test_tiny_matrices_have_fewer_values_than_asked(shape):
    spectrum = layer_spectrum(topology(np.ones(shape)), num_values=8)
    assert len(spectrum.singular_values) == min(shape)
    assert spectrum.sigma_1 == pytest.approx(math.sqrt(shape[0] * shape[1]))
    assert (spectrum.sigma_2, spectrum.gap) == (0.0, 1.0)


def test_an_empty_mask_has_no_gap():
    spectrum = layer_spectrum(topology(np.zeros((3, 4))))
    assert spectrum.singular_values == (0.0, 0.0, 0.0) and spectrum.gap == 0.0


def test_rounding_noise_is_zero():
    spectrum = layer_spectrum(topology(np.ones((300, 70))), num_values=3)
    assert spectrum.singular_values[1:] == (0.0, 0.0) and spectrum.gap == 1.0


def test_degrees_below_one_do_not_count_against_the_bound():
    assert ramanujan_bound(0.5, 5.0) == 2.0


@pytest.mark.parametrize("dense_side", [10**6, 0], ids=["exact", "iterated"])
@pytest.mark.parametrize(
    "mask",
    [
        er(90, 200, 0.1, 1).mask(),
        np.kron(np.eye(6), np.ones((30, 20))) > 0,  # six equal values, then zeros
        ring(160, 6),
        ring(160, 6)[:, ::2],
    ],
    ids=["er", "blocks", "ring", "ring_wide"],
)
def test_both_ways_agree_with_the_full_decomposition(mask, dense_side):
    expected = np.linalg.svd(mask.astype(float), compute_uv=False)[:4]
    found = top_singular_values(mask, 4, dense_side=dense_side)
    assert found == pytest.approx(expected, rel=1e-6)
    again = top_singular_values(mask.T, 4, dense_side=dense_side)
    assert (again == found).all() if dense_side else again == pytest.approx(found, rel=1e-9)


def test_the_iteration_misses_no_pair():
    # A circulant: values |sin((2 r + 1) x) / sin(x)| at x = pi k / size, and k, size - k are equal.
    size, reach = 800, 20
    angles = np.pi * np.array([1, 1, 2, 2, 3]) / size
    expected = [2 * reach + 1, *np.abs(np.sin((2 * reach + 1) * angles) / np.sin(angles))]
    assert top_singular_values(ring(size, reach), 6, dense_side=0) == pytest.approx(expected)


def test_nearly_all_values_are_asked_for():
    mask = er(12, 9, 0.5, 0).mask()
    expected = np.linalg.svd(mask.astype(float), compute_uv=False)
    assert top_singular_values(mask, 8, dense_side=0) == pytest.approx(expected[:8], abs=1e-6)


def test_layers_of_one_label_are_averaged():
    full, blocks = np.ones((2, 2)), np.kron(np.eye(2), np.ones((2, 2)))
    layers = [layer_spectrum(topology(mask)) for mask in (full, blocks)]
    (row,) = average(layers, lambda name: "x").values()
    assert (row.num_layers, row.num_within) == (2, 2)
    assert (row.sigma_1, row.sigma_2, row.gap) == pytest.approx((2.0, 1.0, 0.5))
    line = spectrum_table({"x": row}).splitlines()[1]
    # ER: rho * side = 2 and 2; sqrt(rho (1 - rho)) * 2 sqrt(side) = 0 and 2. Bound: 2 and 2.
    assert line.split() == "x 2 2.000 2.00 1.000 1.00 2.000 2 of 2 0.5000".split()


# One draw each by another generator; at 1 % the largest degree, hence sigma_2, varies by draw.
@pytest.mark.parametrize(
    ("shape", "rho", "sigma_1", "sigma_2", "bound"),
    [
        ((768, 768), 0.01, 8.83, 5.88, 5.17),
        ((768, 768), 0.05, 39.37, 12.08, 12.23),
        ((768, 768), 0.20, 154.3, 22.08, 24.71),
        ((3072, 768), 0.05, 77.96, 18.15, 18.47),
    ],
)
def test_reference_values_of_random_masks(shape, rho, sigma_1, sigma_2, bound):
    spectrum = layer_spectrum(er(*shape, rho, 0), num_values=2)
    assert spectrum.sigma_1 == pytest.approx(sigma_1, rel=0.02)
    assert spectrum.sigma_2 == pytest.approx(sigma_2, rel=0.02)
    assert spectrum.ramanujan_bound == pytest.approx(bound, rel=0.01)
    if rho >= 0.05:
        assert spectrum.er_sigma_1 == pytest.approx(spectrum.sigma_1, rel=0.03)
        assert spectrum.er_sigma_2 == pytest.approx(spectrum.sigma_2, rel=0.02)
