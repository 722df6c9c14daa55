"""Random bipartite graphs with given degrees on both sides, without double edges.

m = rows, n = columns, E = edges. Stub matching and repair: the column of every stub is shuffled and
dealt to the rows; where that hits a cell twice, an edge swaps its column with a random other edge.
The repair makes the draw nearly, not exactly, uniform over all such graphs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rounds of repair before giving up. A round repairs about a quarter of what is left even at
# density 1/2, so large graphs need some tens; only tiny ones can get stuck.
MAX_ROUNDS = 500


def match_degrees(
    row_degrees: NDArray[np.int64], column_degrees: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw a graph with exactly these degrees. Always terminates.

    Args:
        row_degrees: [m], each in [0, n]; they differ by 1 at most.
        column_degrees: [n], each in [0, m], with the same sum; they differ by 1 at most.
        rng: it is advanced.

    Returns:
        Mask [m, n].
    """
    num_rows, num_columns = row_degrees.size, column_degrees.size
    assert row_degrees.sum() == column_degrees.sum()
    if 2 * int(row_degrees.sum()) > num_rows * num_columns:
        # In a dense graph a swap seldom finds two free cells: draw the absent edges instead.
        return ~match_degrees(num_columns - row_degrees, num_rows - column_degrees, rng)
    stubs = _Stubs(row_degrees, column_degrees, rng)
    for _ in range(MAX_ROUNDS):
        if stubs.pending.size == 0:
            return stubs.live.reshape(num_rows, num_columns)
        stubs.swap(rng)
    return _deal(row_degrees, column_degrees, rng)


class _Stubs:
    """Edges (rows[e], columns[e]), of which some are pending: their cell belongs to another edge.

    Law after every step: each edge that is not pending owns one live cell, and no other cell lives.
    """

    def __init__(
        self,
        row_degrees: NDArray[np.int64],
        column_degrees: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> None:
        """Deal the shuffled columns to the rows."""
        self.num_columns = column_degrees.size
        num_cells = row_degrees.size * self.num_columns
        # Half the memory for all but gigantic matrices: the time goes into moving it.
        dtype = np.int32 if num_cells < 2**31 else np.int64
        self.rows = np.repeat(np.arange(row_degrees.size, dtype=dtype), row_degrees)
        columns = np.repeat(np.arange(self.num_columns, dtype=dtype), column_degrees)
        rng.shuffle(columns)
        # Sorting the columns within a row changes nothing but the order in which edges are listed.
        cells = np.sort(self.rows * self.num_columns + columns)
        self.columns = cells - self.rows * self.num_columns
        self.pending = np.flatnonzero(cells[1:] == cells[:-1]) + 1
        self.is_pending = np.zeros(cells.size, dtype=bool)
        self.is_pending[self.pending] = True
        self.live = np.zeros(num_cells, dtype=bool)
        self.live[cells] = True
        self._claims = np.empty(num_cells, dtype=dtype)

    def swap(self, rng: np.random.Generator) -> None:
        """Try a random partner for every pending edge: (u, v), (x, y) become (u, y), (x, v).

        Both new cells must be free, and no two swaps of a round may share a partner or a cell.
        """
        partners = rng.integers(self.rows.size, size=self.pending.size)
        ours = self._cells(self.pending, partners)
        theirs = self._cells(partners, self.pending)
        free = ~(self.live[ours] | self.live[theirs] | self.is_pending[partners])
        tried = np.flatnonzero(free)
        tried = tried[self._win(partners[tried])]
        won = self._win(np.stack([ours[tried], theirs[tried]], axis=1).reshape(-1))
        done = tried[won.reshape(-1, 2).all(axis=1)]
        moved, partner = self.pending[done], partners[done]
        self.live[self._cells(partner, partner)] = False
        self.live[ours[done]] = self.live[theirs[done]] = True
        columns = self.columns
        columns[moved], columns[partner] = columns[partner], columns[moved]
        self.is_pending[moved] = False
        self.pending = np.delete(self.pending, done)

    def _cells(self, edges: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[Any]:
        """Cells in the rows of `edges` and the columns of `others`."""
        return self.rows[edges] * self.num_columns + self.columns[others]

    def _win(self, places: NDArray[Any]) -> NDArray[np.bool_]:
        """One winner for each place that is claimed: the last of its claimants."""
        order = np.arange(places.size, dtype=self._claims.dtype)
        self._claims[places] = order
        return self._claims[places] == order


def _deal(
    row_degrees: NDArray[np.int64], column_degrees: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.bool_]:
    """A graph that always exists: rows take consecutive columns of a shuffled cycle.

    For tiny shapes where the repair is stuck; less random than stub matching.
    """
    num_rows, num_columns = row_degrees.size, column_degrees.size
    row_order, cycle = rng.permutation(num_rows), rng.permutation(num_columns)
    # The cycle does not end with its last column, so the columns that get one more come first.
    cycle = cycle[np.argsort(-column_degrees[cycle], kind="stable")]
    rows = np.repeat(row_order, row_degrees[row_order])
    mask = np.zeros((num_rows, num_columns), dtype=bool)
    mask[rows, cycle[np.arange(rows.size) % num_columns]] = True
    return mask
