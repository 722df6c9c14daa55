"""Block-sparse variants: a graph on the grid of b x b tiles, enlarged to weights.

R, C = rows and columns of tiles: O / b and I / b. All weights of a tile live or none does, which is
what a block-sparse kernel needs. Any graph family can be drawn on the grid.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparsecl.topology.sampling import choose_per_row, spread_degrees
from sparsecl.topology.structured import divisors_text


class GridFn(Protocol):
    """Draws the live tiles of a grid, as flat indices; see `er.er_fixed`."""

    def __call__(
        self, out_features: int, in_features: int, *, rho: float, rng: np.random.Generator
    ) -> NDArray[np.int64]: ...


def draw_tiles(
    draw: GridFn,
    out_features: int,
    in_features: int,
    *,
    rho: float,
    rng: np.random.Generator,
    size: int,
    balanced: bool,
) -> NDArray[np.int64]:
    """Draw a graph of b x b tiles.

    Args:
        draw: the graph family; it sees R and C as the sizes of the layer.
        rho: density of tiles, which is that of weights.
        rng: the stream of this layer; it is advanced.
        size: b, weights along each side of a tile.
        balanced: give every row of tiles a live tile: a row without takes one from the fullest
            row, in the same column.

    Returns:
        Sorted flat indices o * I + i of the live weights.

    Raises:
        ValueError: if b does not divide both sides, or there are fewer live tiles than rows of
            tiles; the message begins with the key.
    """
    check_size(out_features, in_features, size)
    grid = np.zeros((out_features // size, in_features // size), dtype=bool)
    grid.reshape(-1)[draw(*grid.shape, rho=rho, rng=rng)] = True
    if balanced:
        _fill_dead_rows(grid, rho, size, rng)
    return np.flatnonzero(np.repeat(np.repeat(grid, size, axis=0), size, axis=1))


def er_row_balanced(
    out_features: int, in_features: int, *, rho: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`er_fixed` with equal rows: round(rho * O * I) live cells, floor or ceil of the mean a row.

    A block-sparse product takes as long as its longest row of tiles.
    """
    degrees = spread_degrees(out_features, round(rho * out_features * in_features), rng)
    return np.flatnonzero(choose_per_row(in_features, degrees, rng))


def check_size(out_features: int, in_features: int, size: int) -> None:
    """Raise ValueError unless b x b tiles cover the matrix."""
    side = int(np.gcd(out_features, in_features))
    if side % size:
        raise ValueError(
            f"block.size={size} does not divide both sides of the matrix. "
            f"Sizes that do: {divisors_text(side)}"
        )


def check_tiled(mask: NDArray[np.bool_], size: int) -> None:
    """Raise ValueError unless a mask that was not drawn on tiles consists of whole ones."""
    out_features, in_features = mask.shape
    check_size(out_features, in_features, size)
    tiles = mask.reshape(out_features // size, size, in_features // size, size)
    if (tiles != tiles[:, :1, :, :1]).any():
        raise ValueError(f"block.size={size}: the graph does not consist of whole tiles")


def _fill_dead_rows(
    grid: NDArray[np.bool_], rho: float, size: int, rng: np.random.Generator
) -> None:
    """Move tiles from the fullest rows to dead ones, in place; column degrees stay."""
    degrees = grid.sum(axis=1)
    if degrees.sum() < grid.shape[0]:
        raise ValueError(
            f"block.size={size}: density {rho:g} gives {degrees.sum()} live tiles for "
            f"{grid.shape[0]} rows of tiles. Use a smaller size, a density of "
            f"{1 / grid.shape[1]:.3g} or more, or block.balanced: false"
        )
    for row in np.flatnonzero(degrees == 0):
        fullest = int(degrees.argmax())
        column = rng.choice(np.flatnonzero(grid[fullest]))
        grid[fullest, column], grid[row, column] = False, True
        degrees[fullest] -= 1
        degrees[row] = 1
