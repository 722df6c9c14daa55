"""The block backend: products over the live tiles of a tile-constant mask, and nothing else.

O = out_features, I = in_features (local), b = side of a tile, R = O / b tile rows, C = I / b tile
columns, N = live weights, T = tokens. Values are row-major over the mask, so the weights of a tile
row with k live tiles are one matrix [b, k * b], whose columns are those of its live tiles:

    y_R = x[its k tile columns] W_R^T        dW_R = dy_R^T x[its k tile columns]

On a GPU Triton kernels read the tiles in place (block_kernels.py). On the CPU, and where Triton is
missing, x is gathered for one tile row at a time and torch multiplies. Nothing of size O x I is
built on either.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsecl.sparse import kernels
from sparsecl.sparse.product import Backend

# Triton multiplies tiles of these sides.
MIN_KERNEL_SIZE, MAX_KERNEL_SIZE = 16, 128
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# Tokens gathered at a time on the CPU; bounds the copy of x for one tile row (of dy for a column).
# Fewer make tiles of 16 slower, by the calls (3072 x 768, 10 %, Zen 3, 2 threads: 102 ms with 512,
# 55 ms with 4096); for tiles of 64 and more it makes no difference.
CHUNK_TOKENS = 4096


class BlockBackend(Backend):
    """Products over int32 indices of the live tiles, by tile row and by tile column."""

    row_starts: Tensor
    """[R + 1], live tiles before each tile row. Tiles are numbered by row, then by column."""

    tile_rows: Tensor
    """[tiles], tile row of each live tile."""

    columns: Tensor
    """[tiles], tile column of each live tile."""

    column_starts: Tensor
    """[C + 1], live tiles before each tile column; the next three are in that order."""

    rows: Tensor
    """[tiles], tile row."""

    firsts: Tensor
    """[tiles], values before the tile's first one, in units of b."""

    widths: Tensor
    """[tiles], live tiles of its tile row: the tile's rows lie widths * b values apart."""

    def __init__(self, mask: NDArray[np.bool_], size: int) -> None:
        """Prepare the products of a local mask [O, I], True = live.

        Args:
            size: side of the tiles that the mask is made of.

        Raises:
            ValueError: if the sides are not multiples of `size` or a tile is partly live.
        """
        super().__init__()
        self.out_features, self.in_features = mask.shape
        self.size = _kernel_size(size)
        tiles = _live_tiles(mask, size)
        tiles = tiles.repeat(size // self.size, 0).repeat(size // self.size, 1)
        for name, index in _prepare(tiles, self.size).items():
            buffer = torch.from_numpy(index.astype(np.int32))
            self.register_buffer(name, buffer, persistent=False)

    def is_row_major(self, device: torch.device) -> bool:
        """Its kernels are, on a GPU."""
        return device.type == "cuda"

    def arrange(self, x: Tensor) -> Tensor:
        """Feature-major on the CPU (a copy, unless it is so already); as it is on a GPU."""
        return x if x.is_cuda else _features_first(x).t()

    def forward_product(self, x: Tensor, values: Tensor) -> Tensor:
        """[T, I] -> [T, O]; on the CPU feature-major if O > I, as csr.py."""
        if self._has_kernel(x, values):
            from sparsecl.sparse import block_kernels

            y = x.new_empty(x.shape[0], self.out_features)
            block_kernels.forward_product(
                x, values, self.row_starts, self.columns, size=self.size, out=y
            )
            return y
        return self._forward_by_rows(x, values)

    def grad_input(self, dy: Tensor, values: Tensor) -> Tensor:
        """[T, O] -> [T, I]; on the CPU feature-major."""
        if self._has_kernel(dy, values):
            from sparsecl.sparse import block_kernels

            dx = dy.new_empty(dy.shape[0], self.in_features)
            transposed = (self.column_starts, self.rows, self.firsts, self.widths)
            block_kernels.grad_input(dy, values, transposed, size=self.size, out=dx)
            return dx
        return self._grad_input_by_columns(dy, values)

    def grad_values(self, dy: Tensor, x: Tensor) -> Tensor:
        """Gradient of the live values, [N]."""
        if self._has_kernel(dy, x):
            from sparsecl.sparse import block_kernels

            dw = dy.new_empty(self.columns.numel() * self.size**2)
            block_kernels.grad_values(
                dy, x, self.row_starts, self.tile_rows, self.columns, size=self.size, out=dw
            )
            return dw
        return self._grad_values_by_rows(dy, x)

    def _has_kernel(self, left: Tensor, right: Tensor) -> bool:
        assert left.dtype == right.dtype, (left.dtype, right.dtype)
        assert right.dim() == 2 or right.is_contiguous()
        fits = self.size >= MIN_KERNEL_SIZE and left.dtype in KERNEL_DTYPES
        return fits and kernels.available(left.device)

    def _forward_by_rows(self, x: Tensor, values: Tensor) -> Tensor:
        wide, x_tiles = _wide(values), self._tiles_of(x)
        y = x_tiles.new_empty(self.out_features, x.shape[0])
        for out, tiles in self._spans(self.row_starts):
            weight = wide[tiles.start * self.size**2 : tiles.stop * self.size**2]
            weight, picked = weight.view(self.size, -1), self.columns[tiles]
            for part in _chunks(x.shape[0]):
                torch.mm(weight, _gather(x_tiles, picked, part), out=y[out, part])
        y = y.t() if self.out_features > self.in_features else y.t().contiguous()
        return y.to(values.dtype)

    def _grad_input_by_columns(self, dy: Tensor, values: Tensor) -> Tensor:
        dy_tiles, weight = self._tiles_of(dy), self._by_columns(_wide(values))
        dx = dy_tiles.new_empty(self.in_features, dy.shape[0])
        for out, tiles in self._spans(self.column_starts):
            tile_column = weight[tiles.start * self.size : tiles.stop * self.size].t()
            for part in _chunks(dy.shape[0]):
                gathered = _gather(dy_tiles, self.rows[tiles], part)
                torch.mm(tile_column, gathered, out=dx[out, part])
        return dx.t().to(dy.dtype)

    def _grad_values_by_rows(self, dy: Tensor, x: Tensor) -> Tensor:
        left, x_tiles = _features_first(_wide(dy)), self._tiles_of(x)
        dw = left.new_zeros(self.columns.numel() * self.size**2)
        for out, tiles in self._spans(self.row_starts):
            total = dw[tiles.start * self.size**2 : tiles.stop * self.size**2].view(self.size, -1)
            for part in _chunks(dy.shape[0]):
                total.addmm_(left[out, part], _gather(x_tiles, self.columns[tiles], part).t())
        return dw.to(dy.dtype)

    def _spans(self, starts: Tensor) -> Iterator[tuple[slice, slice]]:
        """(features, tiles) of each tile row or tile column."""
        bounds = starts.tolist()
        for at, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            yield slice(at * self.size, (at + 1) * self.size), slice(begin, end)

    def _by_columns(self, values: Tensor) -> Tensor:
        """The tiles under each other, in column order: [tiles * b, b]."""
        inner = torch.arange(self.size, dtype=torch.int32, device=values.device)
        pieces = self.firsts[:, None] + self.widths[:, None] * inner
        return values.view(-1, self.size).index_select(0, pieces.view(-1))

    def _tiles_of(self, x: Tensor) -> Tensor:
        """[T, F] -> contiguous [F / b, b, T]."""
        num_tokens, num_features = x.shape
        return _features_first(_wide(x)).view(num_features // self.size, self.size, num_tokens)


def _live_tiles(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Mask [O, I] -> tiles [O / size, I / size]; ValueError if it is not made of such tiles."""
    rows, columns = mask.shape
    if size < 1 or rows % size or columns % size:
        raise ValueError(f"tiles of {size} do not divide a {rows} x {columns} matrix")
    cells = mask.reshape(rows // size, size, columns // size, size)
    tiles = cells[:, 0, :, 0]
    mixed = (cells != tiles[:, None, :, None]).any(axis=(1, 3))
    if mixed.any():
        row, column = (int(index) for index in np.argwhere(mixed)[0])
        raise ValueError(
            f"the topology is not made of tiles of {size}: tile ({row}, {column}) of "
            f"{tiles.shape[0]} x {tiles.shape[1]} is partly live"
        )
    return tiles


def _kernel_size(size: int) -> int:
    """Triton wants powers of two; a mask of tiles of 48 is also one of tiles of 16."""
    power = math.gcd(size, MAX_KERNEL_SIZE)
    return power if power >= MIN_KERNEL_SIZE else size


def _prepare(tiles: NDArray[np.bool_], size: int) -> dict[str, NDArray[np.int64]]:
    """The indices of BlockBackend from the live tiles [R, C]."""
    rows, columns = np.nonzero(tiles)
    widths = tiles.sum(1)
    row_starts = np.concatenate([[0], np.cumsum(widths)])
    by_column = np.lexsort((rows, columns))
    # Before tile j of a tile row: all tiles of earlier rows, and j pieces of its own first row.
    firsts = row_starts[rows] * size + np.arange(len(rows)) - row_starts[rows]
    return {
        "row_starts": row_starts,
        "tile_rows": rows,
        "columns": columns,
        "column_starts": np.concatenate([[0], np.cumsum(tiles.sum(0))]),
        "rows": rows[by_column],
        "firsts": firsts[by_column],
        "widths": widths[rows][by_column],
    }


def _gather(tiles: Tensor, picked: Tensor, part: slice) -> Tensor:
    """Tiles [F / b, b, T] -> the picked ones under each other, for a part of the tokens."""
    return tiles[:, :, part].index_select(0, picked).flatten(0, 1)


def _chunks(num_tokens: int) -> Iterator[slice]:
    for begin in range(0, num_tokens, CHUNK_TOKENS):
        yield slice(begin, min(begin + CHUNK_TOKENS, num_tokens))


def _features_first(x: Tensor) -> Tensor:
    """[T, F] -> contiguous [F, T]; free if x is feature-major."""
    return x.t().contiguous()


def _wide(x: Tensor) -> Tensor:
    """Lower precisions are computed, and summed, in fp32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
