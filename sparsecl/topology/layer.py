"""One masked matrix: its shape and the set of its live weights.

O = out_features, I = in_features, global; N = live weights. A topology is always that of the whole
logical matrix (q, k, v and o apart); a tensor-parallel rank takes a slice of it with `shard`.

The live set is kept as one bit per cell: 2 MiB for a 4096 x 4096 matrix whatever its density, where
int64 indices would take 13 MiB at density 0.1. Indices are computed when asked for.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

LayerKind = Literal["q", "k", "v", "o", "gate", "up", "down"]
ROW_PARALLEL = ("o", "down")


@dataclass(frozen=True)
class LayerShape:
    """A matrix that may be masked, before any tensor-parallel split."""

    name: str
    """Module name in the model, for example layers.3.mlp.up."""

    kind: LayerKind
    """Its job in the block."""

    out_features: int
    in_features: int
    bias: bool = False
    """A bias [O] is added to its product. No topology masks it."""

    head_width: int = 0
    """Features of a head, of which the rows of q, k and v are made."""

    @property
    def num_cells(self) -> int:
        """Weights of the dense matrix, live or not."""
        return self.out_features * self.in_features

    @property
    def split_dim(self) -> Literal[0, 1]:
        """The dim of the matrix that tp splits. Row-parallel (1) closes what column-parallel (0)
        opens: one all-reduce for each pair."""
        return 1 if self.kind in ROW_PARALLEL else 0


class LayerTopology:
    """The live weights of one global matrix [O, I]. Treat as immutable; compare by `digest`.

    Law: `edges` is strictly increasing, lies in [0, O * I), and has `num_live` entries.
    """

    def __init__(
        self, name: str, out_features: int, in_features: int, edges: NDArray[np.int64]
    ) -> None:
        """Take flat indices o * I + i of the live weights, [N], sorted and distinct."""
        self.name, self.out_features, self.in_features = name, out_features, in_features
        assert edges.dtype == np.int64 and edges.ndim == 1, name
        assert (edges[1:] > edges[:-1]).all(), f"{name}: edges must be sorted and distinct"
        if edges.size:
            assert edges[0] >= 0 and edges[-1] < self.num_cells, name
        mask = np.zeros(self.num_cells, dtype=bool)
        mask[edges] = True
        self._take(mask)

    def _take(self, mask: NDArray[np.bool_]) -> None:
        self.num_live = int(np.count_nonzero(mask))
        """Number of live weights, N."""
        self.bits: NDArray[np.uint8] = np.packbits(mask)
        """The mask in row-major order, 8 cells a byte, first cell highest; [ceil(O * I / 8)]."""
        self.bits.setflags(write=False)

    @classmethod
    def from_mask(cls, name: str, mask: NDArray[np.bool_]) -> "LayerTopology":
        """The topology of a mask [O, I], True = live."""
        assert mask.dtype == np.bool_ and mask.ndim == 2, name
        made = cls.__new__(cls)
        made.name, (made.out_features, made.in_features) = name, mask.shape
        made._take(mask)
        return made

    def with_mask(self, mask: NDArray[np.bool_]) -> "LayerTopology":
        """Another graph on the same layer, for one that was rewired."""
        assert mask.shape == (self.out_features, self.in_features), self.name
        return LayerTopology.from_mask(self.name, mask)

    @property
    def edges(self) -> NDArray[np.int64]:
        """Flat indices o * I + i of the live weights, [N], ascending. Computed anew each time."""
        return np.flatnonzero(self.mask()).astype(np.int64, copy=False)

    @property
    def num_cells(self) -> int:
        """Weights of the dense matrix, live or not."""
        return self.out_features * self.in_features

    @property
    def density(self) -> float:
        """Realised density N / (O * I)."""
        return self.num_live / self.num_cells

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over the shape, as little-endian int64, and `bits`; hex. Name not included."""
        shape = np.array([self.out_features, self.in_features], dtype="<i8")
        digest = hashlib.sha256(shape.tobytes())
        digest.update(self.bits.data)
        return digest.hexdigest()

    def mask(self) -> NDArray[np.bool_]:
        """A fresh copy of the global mask [O, I], True = live."""
        return self._rows(0, self.out_features)

    def contains(self, other: "LayerTopology") -> bool:
        """True if every weight that lives in `other`, of this shape, lives here too."""
        shapes = {(t.out_features, t.in_features) for t in (self, other)}
        return len(shapes) == 1 and not (other.bits & ~self.bits).any()

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
        start, stop = tp_rank * local, (tp_rank + 1) * local
        if dim == 0:
            return self._rows(start, stop)
        return np.ascontiguousarray(self.mask()[:, start:stop])

    def row_degrees(self) -> NDArray[np.int64]:
        """Live inputs of each output unit, [O]."""
        return self.mask().sum(axis=1, dtype=np.int64)

    def column_degrees(self) -> NDArray[np.int64]:
        """Live outputs of each input unit, [I]."""
        return self.mask().sum(axis=0, dtype=np.int64)

    @property
    def isolated_rows(self) -> NDArray[np.int64]:
        """Indices of output units without any live input."""
        return np.flatnonzero(self.row_degrees() == 0)

    @property
    def isolated_columns(self) -> NDArray[np.int64]:
        """Indices of input units that reach no output."""
        return np.flatnonzero(self.column_degrees() == 0)

    def _rows(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Rows start..stop of the mask; only the bytes that hold them are unpacked."""
        first, last = start * self.in_features, stop * self.in_features
        byte = first // 8
        cells = np.unpackbits(self.bits[byte : -(-last // 8)], count=last - 8 * byte)
        rows = cells[first - 8 * byte :].view(np.bool_)
        return np.ascontiguousarray(rows).reshape(stop - start, self.in_features)

    def __repr__(self) -> str:
        return (
            f"LayerTopology({self.name!r}, {self.out_features} x {self.in_features}, "
            f"{self.num_live} live)"
        )
