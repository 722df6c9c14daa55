"""Rows and columns of matrices of which every rank holds a slice: sums over them, and what is said
of a line given back to each of its elements.

A line is a row (dim 0) or a column (dim 1) of the global matrix; a vector is one row. Absent cells
count as zero.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.methods.noise import places
from sparsecl.optim.slice import Slice
from sparsecl.optim.slices import is_counted


def line_sums(
    context: Any, values: Mapping[str, Tensor], dims: Mapping[str, int]
) -> dict[str, Tensor]:
    """Sums of slice tensors over every line, in one exchange. Collective over the world.

    Args:
        values: [numel] by parameter name; what a rank has no slice of is left out.
        dims: of which lines, by the names of all parameters that are asked for: the same, and in
            the same order, on all ranks.

    Returns:
        fp64 [lines] by parameter name, the same on all ranks.
    """
    sizes = [num_lines(context, name, dim) for name, dim in dims.items()]
    total = torch.zeros(sum(sizes), dtype=torch.float64, device=dist.device())
    parts = dict(zip(dims, total.split(sizes), strict=True))
    for name, dim in dims.items():
        item = counted(context, name)
        if item is not None and name in values:
            add_lines(context, item, dim, values[name], parts[name])
    dist.all_reduce(total)
    return parts


def num_lines(context: Any, name: str, dim: int) -> int:
    """Global."""
    return matrix_of(context.global_shape(name))[dim]


def matrix_of(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a parameter of this shape."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], shape[1:].numel())


def counted(context: Any, name: str) -> Slice | None:
    """This rank's slice of a parameter, unless another rank counts it: replicas count once."""
    item = context.slices.find(name)
    if item is None or not is_counted(item.param):
        return None
    return item if context.slices.partitioned or dist.dp_rank() == 0 else None


def add_lines(
    context: Any, item: Slice, dim: int, values: Tensor, total: Tensor, *, absolute: bool = False
) -> None:
    """Add the sums over this rank's slice of a matrix, of |values| if they are asked for, to the
    lines of all, total [lines]. Local."""
    lines = _local_sums(item, dim, values, context.live_index(item.name), absolute)
    split = context.split_dim(item.name)
    if len(item.matrix_shape) == 1 and split == 0:  # a vector is one row
        split = 1
    first = dist.tp_rank() * lines.numel() if split == dim else 0
    total[first : first + lines.numel()] += lines.to(total.device)


def _local_sums(item: Slice, dim: int, values: Tensor, index: Any, absolute: bool) -> Tensor:
    """Of a slice by row (0) or column (1) of the tp-local matrix, fp64."""
    rows, columns = matrix_of(item.matrix_shape)
    sums = values.new_zeros((rows, columns)[dim], dtype=torch.float64)
    if index is not None:
        cells = places(item, index, -1)
        lines = cells // columns if dim == 0 else cells % columns
        return sums.index_add_(0, lines, (values.abs() if absolute else values).double())
    first, end = item.start // columns, -(-(item.start + item.numel) // columns)
    if item.start % columns or item.numel % columns:
        # It begins or ends within a row: it is laid on the rows that it touches.
        touched = values.new_zeros((end - first) * columns)
        touched.narrow(0, item.start - first * columns, item.numel).copy_(values)
        values = touched
    laid = values.view(-1, columns)
    found = (
        torch.linalg.vector_norm(laid, ord=1, dim=1 - dim) if absolute else laid.sum(dim=1 - dim)
    )
    if dim == 1:
        return found.double()
    sums[first:end] = found
    return sums


def of_lines(context: Any, item: Slice, lines: Tensor, dim: int) -> Tensor:
    """What is said of its line, lines [lines], for each element of a slice: [numel]. Local."""
    _, columns = matrix_of(context.global_shape(item.name))
    index = context.live_index(item.name)
    cells = places(item, index, context.split_dim(item.name))
    found = cells // columns if dim == 0 else cells % columns
    return lines.to(cells.device)[found]
