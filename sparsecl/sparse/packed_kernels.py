"""Triton programs of packed storage. Imported only where they run; kernels.py calls them.

Elements are moved as integers of their width: no float unit sees them, so a NaN keeps its payload
and a negative zero its sign. Cells are counted in int64: a matrix may have 2^31 of them or more.
"""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
# Triton is installed on GPU machines only.

import triton
import triton.language as tl


@triton.jit
def _live_cells(bits, starts, num_cells, GROUP: tl.constexpr):
    """This program's cells: (inside the matrix, alive, flat index, slot among the values)."""
    group = tl.program_id(0)
    cell = group.to(tl.int64) * GROUP + tl.arange(0, GROUP)
    inside = cell < num_cells
    byte = tl.load(bits + cell // 8, mask=inside, other=0).to(tl.int32)
    # numpy's packbits: the first cell of a byte is its most significant bit.
    bit = (byte >> (7 - cell % 8).to(tl.int32)) & 1
    rank = tl.cumsum(bit, 0) - bit
    slot = tl.load(starts + group).to(tl.int64) + rank
    return inside, inside & (bit == 1), cell, slot


@triton.jit
def expand_bitmap(values, bits, starts, out, num_cells, GROUP: tl.constexpr):
    """Write one group of cells, the absent ones as zero: every cell once, live or not."""
    inside, live, cell, slot = _live_cells(bits, starts, num_cells, GROUP)
    moved = tl.load(values + slot, mask=live, other=0)
    tl.store(out + cell, moved, mask=inside)


@triton.jit
def gather_bitmap(dense, bits, starts, out, num_cells, GROUP: tl.constexpr):
    """Read the live cells of one group into their slots."""
    _, live, cell, slot = _live_cells(bits, starts, num_cells, GROUP)
    moved = tl.load(dense + cell, mask=live, other=0)
    tl.store(out + slot, moved, mask=live)


@triton.jit
def expand_index(values, index, out, num_live, GROUP: tl.constexpr):
    """Write live cells only; the caller has zeroed the others."""
    slot = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    inside = slot < num_live
    cell = tl.load(index + slot, mask=inside, other=0)
    tl.store(out + cell, tl.load(values + slot, mask=inside, other=0), mask=inside)


@triton.jit
def gather_index(dense, index, out, num_live, GROUP: tl.constexpr):
    """Read live cells into their slots."""
    slot = tl.program_id(0).to(tl.int64) * GROUP + tl.arange(0, GROUP)
    inside = slot < num_live
    cell = tl.load(index + slot, mask=inside, other=0)
    tl.store(out + slot, tl.load(dense + cell, mask=inside, other=0), mask=inside)
