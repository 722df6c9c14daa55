"""Small world: windows by hand, exact counts, the two ends of beta."""

import numpy as np
import pytest
from scipy import stats

from sparsecl import seeding
from sparsecl.topology.bsw import bsw


def mask_of(shape, seed=0, **options):
    mask = np.zeros(shape, dtype=bool)
    mask.reshape(-1)[bsw(*shape, rng=seeding.stream(seed), **options)] = True
    return mask


def test_windows_by_hand():
    # 8 outputs with 2 links each on a ring of 4 inputs, from floor(j / 2 - 1): -1 -1 0 0 1 1 2 2.
    mask = mask_of((8, 4), rho=0.5, beta=0.0)
    rows = ["".join(".#"[int(cell)] for cell in row) for row in mask]
    assert rows == ["#..#", "#..#", "##..", "##..", ".##.", ".##.", "..##", "..##"]
    assert (mask_of((4, 8), rho=0.5, beta=0.0) == mask.T).all()


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("shape", [(7, 7), (5, 13), (13, 5), (1, 6), (12, 12)])
@pytest.mark.parametrize("rho", [0.02, 0.13, 0.6, 0.95, 1.0])
def test_the_count_is_exact(shape, rho, beta):
    assert mask_of(shape, rho=rho, beta=beta).sum() == round(rho * shape[0] * shape[1])


def test_beta_0_has_regular_degrees_on_the_larger_side():
    counts = mask_of((31, 17), rho=0.3, beta=0.0).sum(axis=1)
    assert set(counts) == {5, 6}


def test_beta_is_the_share_of_moved_links():
    band, moved = (mask_of((128, 128), rho=0.1, beta=beta) for beta in (0.0, 0.25))
    # A moved link comes back to its band with probability 0.025 / 0.925 or so.
    assert 1 - (band & moved).sum() / band.sum() == pytest.approx(0.25 * (1 - 0.027), abs=0.03)


def test_beta_1_has_the_degrees_of_a_random_graph():
    degrees = mask_of((400, 400), rho=0.1, beta=1.0).sum(axis=1)
    spread = ((degrees - degrees.mean()) ** 2).sum() / (400 * 0.1 * 0.9)
    assert 1e-3 < stats.chi2.sf(spread, 399) < 1 - 1e-3
