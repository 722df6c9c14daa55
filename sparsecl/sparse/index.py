"""Where the live weights of one local matrix lie, in as few bytes as possible.

O = out_features, I = in_features, local to the tensor-parallel rank; N = live weights, in row-major
order. The index is shared by the weight, its gradient, the master and all moments: they are vectors
[N] in this order. It is kept as a bitmap (1 bit for each cell) or as int32 flat indices (4 bytes
for each live weight), whichever is smaller; the border is a density of about 1/32.
"""

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecl.sparse import kernels

INT32_CELLS = 2**31


class LiveIndex(nn.Module):
    """Expands live values to the matrix and gathers them back. Holds no parameter.

    The tensors are buffers, so that they follow the layer to its device; integers, so that a cast
    of the model leaves them alone; not persistent, because a topology is saved by the checkpoint.
    """

    bits: Tensor | None
    """uint8 [ceil(cells / 8)], most significant bit first."""

    starts: Tensor | None
    """int32, live cells before each group of the bitmap: where a GPU program begins to read."""

    flat: Tensor | None
    """int32 [N], flat indices o * I + i."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        """Take the local mask [O, I], True = live."""
        super().__init__()
        self.out_features, self.in_features = mask.shape
        self.num_live = int(np.count_nonzero(mask))
        bits = starts = flat = None
        if not self.is_full:
            bits = torch.from_numpy(np.packbits(mask.reshape(-1)))
            starts = kernels.make_starts(bits, self.num_cells)
            num_bytes = bits.numel() + starts.numel() * starts.element_size()
            if 4 * self.num_live < num_bytes and self.num_cells < INT32_CELLS:
                flat = torch.from_numpy(np.flatnonzero(mask).astype(np.int32))
                bits = starts = None
        for name, buffer in (("bits", bits), ("starts", starts), ("flat", flat)):
            self.register_buffer(name, buffer, persistent=False)

    @property
    def num_cells(self) -> int:
        """O * I."""
        return self.out_features * self.in_features

    @property
    def is_full(self) -> bool:
        """Every cell lives: the matrix is the vector, and no index is kept."""
        return self.num_live == self.num_cells

    @property
    def index_bytes(self) -> int:
        """Bytes that the index takes."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def positions(self) -> Tensor:
        """Flat indices of the live weights, int64 [N]: 8 bytes each, so not to be kept."""
        if self.is_full:
            return torch.arange(self.num_cells)
        if self.flat is not None:
            return self.flat.long()
        bits = cast(Tensor, self.bits)
        cells = np.unpackbits(bits.cpu().numpy(), count=self.num_cells)
        return torch.from_numpy(np.flatnonzero(cells.view(bool))).to(bits.device)

    def mask(self) -> Tensor:
        """bool [O, I], True = live, on the CPU."""
        mask = torch.zeros(self.num_cells, dtype=torch.bool)
        mask[self.positions().cpu()] = True
        return mask.view(self.out_features, self.in_features)

    def expand(self, values: Tensor, out: Tensor | None = None) -> Tensor:
        """Values [N] -> matrix [O, I] with zeros elsewhere. An all-live matrix is a view.

        Args:
            out: a matrix that an earlier call has made. Its absent cells are zero, so on a CPU only
                live ones are written; a GPU writes all of them in one pass.
        """
        if self.is_full:
            return values.view(self.out_features, self.in_features)
        if not kernels.available(values.device):
            if out is None:
                out = values.new_zeros(self.out_features, self.in_features)
            out.view(-1).index_copy_(0, self.positions(), values)
            return out
        if out is None:
            out = values.new_empty(self.out_features, self.in_features)
        if self.flat is not None:
            kernels.expand_index(values, self.flat, out)
        else:
            kernels.expand_bitmap(values, cast(Tensor, self.bits), cast(Tensor, self.starts), out)
        return out

    def gather(self, dense: Tensor) -> Tensor:
        """Matrix [O, I] -> its live values [N]."""
        if self.is_full:
            return dense.reshape(-1)
        if kernels.available(dense.device):
            values = dense.new_empty(self.num_live)
            dense = dense.contiguous()
            if self.flat is not None:
                kernels.gather_index(dense, self.flat, values)
            else:
                kernels.gather_bitmap(
                    dense, cast(Tensor, self.bits), cast(Tensor, self.starts), values
                )
            return values
        index = self.flat if self.flat is not None else self.positions()
        return dense.reshape(-1).index_select(0, index)
