"""Receptive fields: bands by hand, orientation, the law of distances, the shuffled control."""

import numpy as np
import pytest

from sparsecl import seeding
from sparsecl.topology.brf import brf, ring_log_weights, shared_index


def mask_of(draw, shape, seed=0, **options):
    mask = np.zeros(shape, dtype=bool)
    mask.reshape(-1)[draw(*shape, rng=seeding.stream(seed), **options)] = True
    return mask


def text(mask):
    return ["".join(".#"[int(cell)] for cell in row) for row in mask]


def ring_distance(mask):
    """Mean distance of the links of a square matrix from the diagonal, on the ring."""
    rows, columns = np.nonzero(mask)
    distance = np.abs(rows - columns)
    return np.minimum(distance, mask.shape[0] - distance).mean()


def test_nearest_links_by_hand():
    # 4 links a row: the centre, both neighbours, and of the two at distance 2 the one behind (+).
    assert text(mask_of(brf, (8, 8), rho=0.5, r=0.0))[:3] == ["###....#", "####....", ".####..."]
    # Centres lie on every second input: 2 links are the centre and the next unit.
    assert text(mask_of(brf, (4, 8), rho=0.25, r=0.0)) == [
        "##......",
        "..##....",
        "....##..",
        "......##",
    ]
    # A tall matrix has its centres on the inputs.
    assert (mask_of(brf, (8, 4), rho=0.25, r=0.0) == mask_of(brf, (4, 8), rho=0.25, r=0.0).T).all()


def test_a_band_of_even_width_has_regular_degrees():
    mask = mask_of(brf, (20, 20), rho=0.2, r=0.0)
    assert set(mask.sum(axis=0)) == set(mask.sum(axis=1)) == {4}


def test_square_rows_have_the_fixed_degree():
    mask = mask_of(brf, (50, 50), rho=0.1, r=0.3)
    assert set(mask.sum(axis=1)) == {5} and len(set(mask.sum(axis=0))) > 1


@pytest.mark.parametrize("degrees", ["fixed", "uniform"])
@pytest.mark.parametrize("r", [0.0, 0.001, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(7, 7), (5, 13), (13, 5), (1, 6), (12, 12)])
@pytest.mark.parametrize("rho", [0.02, 0.13, 0.6, 1.0])
def test_the_count_is_exact(shape, rho, r, degrees):
    mask = mask_of(brf, shape, rho=rho, r=r, degrees=degrees)
    total = round(rho * mask.size)
    assert mask.sum() == total
    counts = mask.sum(axis=1 if shape[0] <= shape[1] else 0)
    if degrees == "fixed":
        assert set(counts) <= {total // counts.size, -(-total // counts.size)}
    elif total >= counts.size:
        assert counts.min() >= 1


def test_uniform_degrees_spread():
    counts = mask_of(brf, (200, 400), rho=0.1, degrees="uniform").sum(axis=1)
    # 1 + a multinomial share of the rest: mean 40, variance near 39.
    assert 4.0 < counts.std() < 9.0


def test_weights_of_a_ring_of_eight():
    # r = 0.5: weights 1 / (1 + d) at distances 0 1 2 3 4 3 2 1, sum 3.3667; P(centre) = 0.2970.
    weights = np.exp(ring_log_weights(8, 0.5))
    assert weights == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 4, 1 / 3, 1 / 2])
    assert weights[0] / weights.sum() == pytest.approx(0.2970, abs=1e-4)
    assert np.exp(ring_log_weights(8, 0.25)) == pytest.approx(weights**3)
    # Empirically: one link per unit, 500 layers of 8 units.
    rng = seeding.stream(0, "ring")
    offsets = [(brf(8, 8, rho=1 / 8, rng=rng, r=0.5) % 8 - np.arange(8)) % 8 for _ in range(500)]
    shares = np.bincount(np.concatenate(offsets), minlength=8) / 4000
    expected = weights / weights.sum()
    assert (np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_distance_grows_with_r():
    distances = [ring_distance(mask_of(brf, (96, 96), rho=0.1, r=r)) for r in np.linspace(0, 1, 6)]
    assert (np.diff(distances) > 0).all()
    # r = 0.001 is the band but for ties, r = 1 is uniform: a quarter of the ring on average.
    nearly = ring_distance(mask_of(brf, (96, 96), rho=0.1, r=0.001))
    assert nearly == pytest.approx(distances[0], rel=0.02)
    assert distances[-1] == pytest.approx(24.0, rel=0.1)


def test_shared_index_is_the_same_graph_under_other_names():
    plain = mask_of(brf, (24, 48), rho=0.1, r=0.1, seed=3)
    shuffled = mask_of(shared_index, (24, 48), rho=0.1, r=0.1, seed=3)
    assert (plain != shuffled).any()
    for axis in (0, 1):
        assert sorted(plain.sum(axis=axis)) == sorted(shuffled.sum(axis=axis))
    singular = [np.linalg.svd(mask.astype(float), compute_uv=False) for mask in (plain, shuffled)]
    assert singular[0] == pytest.approx(singular[1])
