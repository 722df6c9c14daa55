"""Several phases at once: all sequences that they would read one after the other, shuffled.

Training on the mixture is the upper bound of learning in sequence: the same sequences, the same
number of times, and nothing to forget.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecl.data.batches import PhaseStream
from sparsecl.data.permutation import Permutation
from sparsecl.seeding import stream


class MixedStream:
    """Endless sequences of several phases. One epoch holds each sequence of each phase once.

    Args:
        streams: one for each phase.
        counts: sequences that each phase trains, >= 1.
        seed: seed of the run; it decides the order.
    """

    def __init__(self, streams: Sequence[PhaseStream], counts: Sequence[int], *, seed: int) -> None:
        self._streams = list(streams)
        self._counts = np.asarray(counts, dtype=np.int64)
        self._ends = np.cumsum(self._counts)
        self._seed = seed

    def places(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For sequences [n] of the mixture: the phase [n], and the number in that phase [n]."""
        total = int(self._ends[-1])
        epochs, positions = np.divmod(np.asarray(indices, dtype=np.int64), total)
        numbers = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rng = stream(self._seed, "mixture", int(epoch))
            numbers[here] = Permutation(total, rng)(positions[here])
        phases = np.searchsorted(self._ends, numbers, side="right")
        begins = self._ends - self._counts
        return phases, numbers - begins[phases] + epochs * self._counts[phases]

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sequences `indices` [n] of the mixture, each >= 0, as token ids [n, context + 1]."""
        phases, numbers = self.places(indices)
        result: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)] * len(phases)
        for phase in np.unique(phases):
            here = np.flatnonzero(phases == phase)
            for place, row in zip(here, self._streams[phase].rows(numbers[here]), strict=True):
                result[place] = row
        return np.stack(result)
