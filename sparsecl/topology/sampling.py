"""Draws without replacement that every graph family is made of.

R = num_rows, S = size of a row. All results are masks: True = chosen. The bits depend on the stream
and on the arguments, never on how the work is cut into chunks.
"""

import numpy as np
from numpy.typing import NDArray

# Cells weighed at once by the race: 1 MB of doubles, which a cache holds. Doubles are drawn one
# after the other from the stream, row by row, so the bits do not depend on it.
CHUNK_CELLS = 1 << 17


def spread_degrees(num_units: int, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Share `total` links over units as evenly as integers allow, [num_units].

    Law: the sum is `total` and every entry is floor or ceil of total / num_units; which units get
    the ceil is drawn.
    """
    degrees = np.full(num_units, total // num_units, dtype=np.int64)
    degrees[rng.permutation(num_units)[: total % num_units]] += 1
    return degrees


def choose_cells(num_cells: int, count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose `count` of `num_cells` cells, all sets of that size equally likely.

    Returns:
        [num_cells] with exactly `count` chosen.
    """
    # Draw the smaller side: few collisions, and count = num_cells needs no draw at all.
    draw_rest = 2 * count > num_cells
    drawn = np.zeros(num_cells, dtype=bool)
    add_cells(drawn, num_cells - count if draw_rest else count, rng)
    return ~drawn if draw_rest else drawn


def add_cells(cells: NDArray[np.bool_], count: int, rng: np.random.Generator) -> None:
    """Choose `count` more cells, in place; all sets of free cells equally likely.

    Args:
        cells: [num_cells], True = taken; at least `count` are free.
    """
    target = int(np.count_nonzero(cells)) + count
    assert target <= cells.size
    if 2 * target > cells.size:
        free = np.flatnonzero(~cells)
        cells[free[choose_cells(free.size, count, rng)]] = True
        return
    missing = count
    while missing:
        # Draws that hit a taken cell are repeated. Each round asks for as many cells as are
        # missing, so it never overshoots, and by symmetry all sets of this size are equally likely.
        cells[rng.integers(cells.size, size=missing)] = True
        missing = target - int(np.count_nonzero(cells))


def choose_per_row(
    size: int,
    degrees: NDArray[np.int64],
    rng: np.random.Generator,
    log_weights: NDArray[np.float64] | None = None,
) -> NDArray[np.bool_]:
    """Choose degrees[r] distinct columns in each row r, sequentially and without replacement.

    Args:
        size: columns per row, S.
        degrees: columns to choose in each row, [R], each in [0, S].
        log_weights: logarithms of the weights of the columns, [S], the same in every row; each
            pick falls on a free column with probability proportional to its weight. None = all
            equal.

    Returns:
        [R, S]; row r has exactly degrees[r] chosen.
    """
    assert degrees.size == 0 or (0 <= degrees.min() and degrees.max() <= size)
    if log_weights is not None:
        return _race(size, degrees, rng, log_weights)
    if 2 * int(degrees.sum()) > degrees.size * size:
        return ~_floyd(size, size - degrees, rng)
    return _floyd(size, degrees, rng)


def _floyd(size: int, degrees: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Equal weights: Floyd's algorithm (Bentley and Floyd 1987) on all rows at once.

    Pick t of a row with K picks looks at columns 0 .. S - K + t only; a hit on a taken column
    takes the last of them instead. Work grows with the picks, not with the cells.
    """
    chosen = np.zeros((degrees.size, size), dtype=bool)
    rows = np.arange(degrees.size)
    for pick in range(int(degrees.max(initial=0))):
        if (degrees <= pick).any():
            rows = rows[degrees[rows] > pick]
        last = size - degrees[rows] + pick
        # A double has 53 bits: the product is below last + 1 and uniform to 1 part in 2^53 / S.
        columns = (rng.random(rows.size) * (last + 1)).astype(np.int64)
        columns = np.where(chosen[rows, columns], last, columns)
        chosen[rows, columns] = True
    return chosen


def _race(
    size: int,
    degrees: NDArray[np.int64],
    rng: np.random.Generator,
    log_weights: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Any weights: column j arrives at time Exp(1) / w_j, and the first K arrivals are chosen.

    That is sequential sampling without replacement, and Gumbel-top-k in other words (Efraimidis
    and Spirakis 2006; Kool et al. 2019). Times are compared as logarithms in fp64: weights may
    span thousands of decades, and ties or roundings that differ between two machines need two
    arrivals within 1e-15 of each other. Only arrivals before a deadline are looked at; a row with
    too few of them is looked at in full, so the deadline saves work and changes no bit.
    """
    chosen = np.zeros((degrees.size, size), dtype=bool)
    early = _arrival_probability(log_weights, int(degrees.max(initial=0)))
    # One uniform per cell: the seeded stream's Philox takes 2.5 times as long as this generator.
    bulk = np.random.Generator(np.random.SFC64(rng.integers(2**63)))
    step = max(1, CHUNK_CELLS // size)
    buffer = np.empty((min(step, degrees.size), size))
    for start in range(0, degrees.size, step):
        uniforms = bulk.random(out=buffer[: degrees.size - start])
        cells = np.flatnonzero(uniforms < early)
        rows, columns = np.divmod(cells, size)
        times = _log_times(uniforms.reshape(-1)[cells], log_weights[columns])
        ends = np.searchsorted(rows, np.arange(len(uniforms)), side="right")
        for row, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            degree = degrees[start + row]
            if end - begin < degree:
                found = _smallest(degree, _log_times(uniforms[row], log_weights))
            else:
                found = columns[begin:end][_smallest(degree, times[begin:end])]
            chosen[start + row, found] = True
    return chosen


def _log_times(
    uniforms: NDArray[np.float64], log_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Logarithm of the arrival time that a uniform variable stands for."""
    with np.errstate(divide="ignore"):  # a uniform may be 0: it arrives at once
        return np.log(-np.log1p(-uniforms)) - log_weights


def _smallest(count: int, times: NDArray[np.float64]) -> NDArray[np.int64] | slice:
    """Indices of the `count` smallest, in any order."""
    if count in (0, times.size):
        return slice(count)
    return np.argpartition(times, count - 1)[:count]


def _arrival_probability(log_weights: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Probability of each column to arrive before a deadline that about `degree` columns make.

    Three standard deviations of slack: one row in a thousand falls short, at most.
    """
    target = degree + 3.0 * np.sqrt(degree) + 1.0
    certain = np.ones(log_weights.size)
    if target >= log_weights.size:
        return certain
    # The logarithm of the deadline, by bisection: the expected number of arrivals grows with it.
    low, high = -log_weights.max() - 50.0, -log_weights.min() + 50.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        if _arrived_by(middle, log_weights).sum() < target:
            low = middle
        else:
            high = middle
    return _arrived_by(high, log_weights)


def _arrived_by(log_time: float, log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    # exp(700) is near the largest double; an arrival is certain long before.
    return -np.expm1(-np.exp(np.minimum(log_time + log_weights, 700.0)))
