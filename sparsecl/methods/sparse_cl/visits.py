"""How the loss of each sequence of a phase went from visit to visit, and which are removed.

n = pieces of the phase's text, numbered from 0, as far as they have been visited. The same on all
ranks.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DTYPES = {"visits": torch.int64, "events": torch.int64, "last": torch.float32, "gone": torch.int64}


class Visits:
    """Counts since the last removal."""

    def __init__(self) -> None:
        self.visits: NDArray[np.int64] = np.zeros(0, np.int64)
        self.events: NDArray[np.int64] = np.zeros(0, np.int64)
        """Visits with a loss above that of the one before."""

        self.last: NDArray[np.float32] = np.zeros(0, np.float32)
        """Loss of the last visit."""

        self.gone: NDArray[np.int64] = np.zeros(0, np.int64)
        """1 = removed."""

    def _reach(self, num: int) -> None:
        """Have room for so many."""
        more = num - len(self.visits)
        if more > 0:
            for key in DTYPES:
                setattr(self, key, np.pad(getattr(self, key), (0, more)))

    def removed(self, chunks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of them are, bool [k]."""
        known = chunks < len(self.gone)
        found = np.zeros(len(chunks), dtype=np.bool_)
        found[known] = self.gone[chunks[known]] == 1
        return found

    def count(self, chunks: NDArray[np.int64], losses: NDArray[np.float32]) -> None:
        """Visits of one step, in its order; one piece may come twice."""
        self._reach(int(chunks.max(initial=-1)) + 1)
        for chunk, loss in zip(chunks.tolist(), losses.tolist(), strict=True):
            if self.visits[chunk] and loss > self.last[chunk]:
                self.events[chunk] += 1
            self.visits[chunk] += 1
            self.last[chunk] = loss

    def remove(self, share: float) -> None:
        """Remove this share of all pieces: those with fewest events, then of lowest loss, of what
        was visited twice. Counts begin again."""
        num = round(share * len(self.visits))
        able = np.flatnonzero((self.visits >= 2) & (self.gone == 0))
        order = np.lexsort((able, self.last[able], self.events[able]))
        self.gone[able[order[:num]]] = 1
        self.visits[:], self.events[:] = 0, 0

    def arrays(self) -> dict[str, Tensor]:
        if not len(self.visits):
            return {}
        return {key: torch.from_numpy(getattr(self, key).copy()) for key in DTYPES}

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "Visits":
        """What `arrays` gave."""
        found = cls()
        for key, value in arrays.items():
            setattr(found, key, value.numpy().copy())
        return found

    @staticmethod
    def check(arrays: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless `arrays` may have given them; with the name."""
        for key in sorted((set(DTYPES) if arrays else set()) ^ set(arrays)):
            raise ValueError(f"{key} is {'missing' if key in DTYPES else 'not known'}")
        for key, value in arrays.items():
            if value.dtype != DTYPES[key] or value.shape != arrays["visits"].shape:
                raise ValueError(
                    f"{key}: {value.dtype} {list(value.shape)} is not of all sequences"
                )
