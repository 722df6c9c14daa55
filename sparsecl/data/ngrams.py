"""How much of some text occurs in other text: runs of 13 words that both have.

After Brown et al. 2020 (GPT-3), appendix C, https://arxiv.org/abs/2005.14165. Words are those of
identity.py, a run lies inside one document. Differs: of much held out text an evenly spread sample
of the runs is looked for.

Runs are compared by hashes of 64 bits; 10**6 of them among 10**10 have a chance collision with a
probability below 0.1 %.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsecl.data.identity import words

SIZE = 13
"""Words of a run."""

MAX_LOOKED_FOR = 1 << 18
"""Runs that one sample holds; 13 bytes each."""

_BATCH_WORDS = 1 << 16  # short documents are hashed together
_PREFIX_BITS = 22

Hashes = NDArray[np.uint64]

# Any odd numbers; they weigh the hashes of a run's words, so that their order counts.
_WEIGHTS = np.random.default_rng(0).integers(2**63, size=SIZE, dtype=np.uint64) * np.uint64(2) + 1


class Runs(NamedTuple):
    """Runs of some documents, in order."""

    hashes: Hashes
    documents: NDArray[np.int64]
    """The number of the document that each is in, from 0."""


def runs(texts: Iterable[str]) -> Iterator[Runs]:
    """All runs of some documents, many at a time. Equal within one process only: hash() is."""
    batch: list[bytes] = []
    counts: list[int] = []
    first = 0
    for text in texts:
        found = words(text)
        batch += found
        counts.append(len(found))
        if len(batch) >= _BATCH_WORDS:
            yield _hashed(batch, counts, first)
            first += len(counts)
            batch, counts = [], []
    yield _hashed(batch, counts, first)


def _hashed(batch: list[bytes], counts: list[int], first: int) -> Runs:
    hashes = np.fromiter(map(hash, batch), np.int64, len(batch)).view(np.uint64)
    documents = np.repeat(np.arange(first, first + len(counts)), counts)
    num_runs = max(0, len(batch) - SIZE + 1)
    sums = np.zeros(num_runs, np.uint64)
    for place, weight in enumerate(_WEIGHTS):
        sums += hashes[place : place + num_runs] * weight
    inside = documents[:num_runs] == documents[SIZE - 1 :][:num_runs]
    return Runs(sums[inside], documents[:num_runs][inside])


class Sample:
    """Runs of held out text.

    Args:
        texts: its documents.
        num_bytes: of them in all; a word takes two at least.

    Attributes:
        every: of this many runs one is held.
        hashes: distinct ones, sorted.
    """

    def __init__(self, texts: Iterable[str], num_bytes: int) -> None:
        self.every = max(1, -(-num_bytes // (2 * MAX_LOOKED_FOR)))
        parts, passed = [], 0
        for found in runs(texts):
            chosen = slice(-passed % self.every, None, self.every)
            parts.append(Runs(found.hashes[chosen], found.documents[chosen]))
            passed += len(found.hashes)
        hashes = np.concatenate([part.hashes for part in parts])
        self._documents = np.concatenate([part.documents for part in parts])
        self.hashes, self._place = np.unique(hashes, return_inverse=True)

    def counts(self, found: Hashes) -> dict[str, int]:
        """What of it is among the hashes `found` (sorted): runs and documents."""
        there = np.isin(self.hashes, found, assume_unique=True)[self._place]
        return {
            "every": self.every,
            "runs": len(there),
            "found": int(there.sum()),
            "documents": len(np.unique(self._documents[there])),
        }


def occurring(looked_for: Hashes, texts: Iterable[str]) -> Hashes:
    """Those of some distinct, sorted hashes that runs of `texts` have. Reads `texts` once."""
    found = np.zeros(len(looked_for), bool)
    # Most runs are ruled out by their first bits, which costs a fifth of the search.
    shift = np.uint64(64 - _PREFIX_BITS)
    begins = np.zeros(1 << _PREFIX_BITS, bool)
    begins[looked_for >> shift] = True
    for hashes, _ in runs(texts):
        maybe = hashes[begins[hashes >> shift]]
        places = np.searchsorted(looked_for, maybe)
        places[places == len(looked_for)] = 0
        if len(looked_for):
            found[places[looked_for[places] == maybe]] = True
    return looked_for[found]
