"""A pseudo-random permutation of 0..n-1 that needs no table: any position, O(1).

A Feistel network permutes the numbers below 4**w, the smallest such power >= n. Results >= n are
put through it again until they fall below n (cycle walking), which keeps it a bijection on 0..n-1;
since 4**w < 4n, four rounds of walking are enough on average.
Source: Black and Rogaway 2002, Ciphers with arbitrary finite domains.
Differs: the round function is the splitmix64 finaliser, because the order needs no secrecy.
"""

import numpy as np
from numpy.typing import NDArray

NUM_ROUNDS = 6  # four already give a pseudo-random permutation; two more cost little


class Permutation:
    """Bijection on 0..size-1, drawn by a random stream.

    Args:
        size: number of elements, >= 1.
        rng: NUM_ROUNDS keys are drawn from it.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        self.size = size
        bits = max(1, ((size - 1).bit_length() + 1) // 2)
        self._half = np.uint64(bits)
        self._low = np.uint64((1 << bits) - 1)
        self._keys = rng.integers(0, 2**64, size=NUM_ROUNDS, dtype=np.uint64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Map positions [n], each in 0..size-1, to elements [n]."""
        values = self._feistel(np.asarray(positions).astype(np.uint64))
        outside = np.flatnonzero(values >= self.size)
        while len(outside):
            values[outside] = self._feistel(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _feistel(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._low
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._low)
        return (left << self._half) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea and Flood 2014); products wrap modulo 2**64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
