"""Tiles: whole ones, balanced rows, repair, messages."""

import numpy as np
import pytest

from sparsecl import seeding
from sparsecl.topology import tiles
from sparsecl.topology.brf import brf
from sparsecl.topology.er import er_fixed
from sparsecl.topology.tiles import check_tiled, draw_tiles, er_row_balanced


def grid_of(draw, shape, seed=0, *, rho, size, balanced=True):
    """The live tiles; fails if a tile is neither live nor dead."""
    rng = seeding.stream(seed)
    edges = draw_tiles(draw, *shape, rho=rho, rng=rng, size=size, balanced=balanced)
    mask = np.zeros(shape, dtype=bool)
    mask.reshape(-1)[edges] = True
    check_tiled(mask, size)
    return mask[::size, ::size]


def test_the_graph_is_that_of_the_grid():
    grid = grid_of(brf, (12, 24), rho=0.5, size=3, balanced=False)
    edges = brf(4, 8, rho=0.5, rng=seeding.stream(0))
    assert np.flatnonzero(grid).tolist() == edges.tolist()


@pytest.mark.parametrize("rho", [0.2, 0.31, 0.9])
def test_rows_of_tiles_are_balanced_and_the_count_is_exact(rho):
    counts = grid_of(er_row_balanced, (24, 32), rho=rho, size=4).sum(axis=1)
    total = round(rho * 6 * 8)
    assert counts.sum() == total
    assert set(counts) <= {total // 6, -(-total // 6)}


@pytest.mark.parametrize("seed", range(5))
def test_no_row_of_tiles_is_dead(seed):
    # 14 live tiles on 12 rows: a draw without care leaves rows dead.
    plain, mended = (
        grid_of(er_fixed, (48, 32), seed, rho=14 / 96, size=4, balanced=b) for b in (False, True)
    )
    assert (plain.sum(axis=1) == 0).any()
    assert (mended.sum(axis=1) > 0).all()
    assert (mended.sum(axis=0) == plain.sum(axis=0)).all()  # tiles move inside their column


@pytest.mark.parametrize(
    ("shape", "rho", "size", "words"),
    [
        ((8, 12), 0.5, 3, r"^block.size=3 does not divide .*: 2, 4"),
        ((7, 9), 0.5, 3, r"Sizes that do: 1"),
        ((8, 8), 0.1, 2, r"2 live tiles for 4 rows of tiles\..* 0.25 or more.*balanced: false"),
    ],
)
def test_messages(shape, rho, size, words):
    with pytest.raises(ValueError, match=words):
        grid_of(er_row_balanced, shape, rho=rho, size=size)


def test_a_broken_tile_is_found():
    mask = np.kron(np.eye(2, dtype=bool), np.ones((2, 2), dtype=bool))
    tiles.check_tiled(mask, 2)
    mask[0, 1] = False
    with pytest.raises(ValueError, match=r"^block.size=2: .* whole tiles"):
        tiles.check_tiled(mask, 2)
