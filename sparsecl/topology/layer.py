"""One masked matrix: its shape and the set of its live weights.

O = out_features, I = in_features, global; N = live weights. A topology is always that of the whole
logical matrix (q, k, v and o apart); a tensor-parallel rank takes a slice of it with `shard`.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LayerKind = Literal["q", "k", "v", "o", "up", "down"]


@dataclass(frozen=True)
class LayerShape:
    """A matrix that may be masked, before any tensor-parallel split."""

    name: str
    """Module name in the model, for example layers.3.mlp.up."""

    kind: LayerKind
    """Its job in the block."""

    out_features: int
    in_features: int

    @property
    def num_cells(self) -> int:
        """Weights of the dense matrix, live or not."""
        return self.out_features * self.in_features


@dataclass(frozen=True, eq=False)  # two topologies are compared by digest
class LayerTopology:
    """The live weights of one global matrix [O, I]. Immutable.

    Law: `edges` is strictly increasing and lies in [0, O * I).
    """

    name: str
    out_features: int
    in_features: int
    edges: NDArray[np.int64]
    """Flat indices o * I + i of the live weights, [N]."""

    def __post_init__(self) -> None:
        assert self.edges.dtype == np.int64 and self.edges.ndim == 1, self.name
        assert (np.diff(self.edges) > 0).all(), f"{self.name}: edges must be sorted and distinct"
        if self.num_live:
            assert self.edges[0] >= 0 and self.edges[-1] < self.num_cells, self.name
        self.edges.setflags(write=False)

    @property
    def num_cells(self) -> int:
        """Weights of the dense matrix, live or not."""
        return self.out_features * self.in_features

    @property
    def num_live(self) -> int:
        """Number of live weights, N."""
        return int(self.edges.size)

    @property
    def density(self) -> float:
        """Realised density N / (O * I)."""
        return self.num_live / self.num_cells

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over the shape and the edges, as little-endian int64; hex. Name not included."""
        shape = np.array([self.out_features, self.in_features], dtype="<i8")
        digest = hashlib.sha256(shape.tobytes())
        digest.update(np.ascontiguousarray(self.edges, dtype="<i8").data)
        return digest.hexdigest()

    def mask(self) -> NDArray[np.bool_]:
        """The global mask [O, I], True = live."""
        mask = np.zeros(self.num_cells, dtype=bool)
        mask[self.edges] = True
        return mask.reshape(self.out_features, self.in_features)

    def shard(self, dim: int, tp_rank: int, tp_size: int) -> NDArray[np.bool_]:
        """The slice of the mask that a tensor-parallel rank holds, True = live.

        Args:
            dim: 0 splits rows (column-parallel layer), 1 splits columns (row-parallel layer).

        Returns:
            Contiguous mask [O / tp_size, I] or [O, I / tp_size].
        """
        size = (self.out_features, self.in_features)[dim]
        assert size % tp_size == 0, f"{self.name}: dim {dim} of size {size} over {tp_size} ranks"
        local = size // tp_size
        window = slice(tp_rank * local, (tp_rank + 1) * local)
        mask = self.mask()
        return np.ascontiguousarray(mask[window] if dim == 0 else mask[:, window])

    def row_degrees(self) -> NDArray[np.int64]:
        """Live inputs of each output unit, [O]."""
        return np.bincount(self.edges // self.in_features, minlength=self.out_features)

    def column_degrees(self) -> NDArray[np.int64]:
        """Live outputs of each input unit, [I]."""
        return np.bincount(self.edges % self.in_features, minlength=self.in_features)

    @property
    def isolated_rows(self) -> NDArray[np.int64]:
        """Indices of output units without any live input."""
        return np.flatnonzero(self.row_degrees() == 0)

    @property
    def isolated_columns(self) -> NDArray[np.int64]:
        """Indices of input units that reach no output."""
        return np.flatnonzero(self.column_degrees() == 0)
