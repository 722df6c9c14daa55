"""Triton kernels of the block backend: y = x W^T, dx = dy W and dW on live tiles only.

T = tokens, O = out_features, I = in_features (local), b = side of a tile (16, 32, 64 or 128), N =
live weights. Imported only where they run; block.py calls them and explains the indices.

Values are row-major over the mask, so tile j of a tile row with k live tiles begins j * b after the
row's first value and its own rows lie k * b apart: tiles are read in place, without a copy.

Sizes for 2048 -> 8192 features, 8192 tokens, b = 128, 20 % live (205 tiles), bf16, on an H200 with
132 SMs, 790 TFLOP/s of measured matrix peak, 4.3 TB/s of memory and 50 MB of L2 cache:
each product is 55 GFLOP, 70 us at peak, and moves x and y (168 MB, 39 us) whatever the density.
A BLOCK_T x 128 output tile does 2 * BLOCK_T * 128 / (2 * (BLOCK_T + 128)) FLOP per byte from L2:
64 at 128 tokens, 85 at 256. At the 5.5 TB/s or so that L2 delivers (assumed, like all times here)
that is 45 % and 60 % of peak, so the larger tile is worth its registers; the tuner has both.

The programs of the products over tokens run tile row (or tile column) first: those that share a
block of tokens run together and read it from L2 (128 tokens of x are 0.5 MB, of dy 2 MB; the 132
programs in flight touch 1 MB of x, or 17 MB of dy), and W (6.7 MB) stays there throughout.

What is tuned by timing never changes the order of a sum: two processes may pick differently, and a
resumed run must have the bits of one that never stopped.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportReturnType=false
# Triton is installed on GPU machines only, and its language is no Python to a type checker.

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsecl.sparse.kernels import on_device_of

# Length of one multiplication: input features in the products over tokens, tokens in dW. Not tuned:
# it is part of the order of a sum. 64 bf16 features of a 256 x 128 tile are 48 KB, so that four
# fit in the 227 KB of shared memory of an SM. fp32 runs on the ordinary units, where a step is
# unrolled into single instructions: 64 took 25 s to compile and spilled registers.
STEP, STEP_FP32 = 64, 16
# What a part of dW costs to write and read back, in tokens per tile: 8 bytes at 4.3 TB/s against
# the 2 FLOP that a token takes at half of an SM's 6 TFLOP/s.
PART_COST_TOKENS = 2.8


INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


def _token_configs() -> list[triton.Config]:
    """Choices for the products over tokens; a single one is taken without timing."""
    if INTERPRETED.value:
        return [triton.Config({"BLOCK_T": 32}, num_warps=4, num_stages=1)]
    return [
        triton.Config({"BLOCK_T": tokens}, num_warps=warps, num_stages=stages)
        for tokens, warps, stages in (
            (64, 4, 4),
            (128, 4, 3),
            (128, 8, 3),
            (128, 8, 4),
            (256, 8, 3),
            (256, 8, 4),
        )
    ]


def _sum_configs() -> list[triton.Config]:
    """Choices for dW."""
    if INTERPRETED.value:
        return [triton.Config({}, num_warps=4, num_stages=1)]
    return [triton.Config({}, num_warps=w, num_stages=s) for w in (4, 8) for s in (3, 4, 5)]


def _tuned(configs: list[triton.Config], *keys: str) -> Any:
    """Take the fastest config for each value of `keys` and each magnitude of the number of tokens:
    a short batch at the end of an evaluation must not choose for training. What was found lies
    among Triton's compiled kernels, so that ranks and runs that begin later need not try again."""
    return triton.autotune(configs=configs, key=[*keys, "magnitude"], cache_results=True)


def _magnitude(num_tokens: int) -> int:
    """The next power of two. Below 16 Triton would compile a kernel of its own for each."""
    return max(16, 1 << (num_tokens - 1).bit_length())


@triton.jit
def _multiply_add(left, right, total):
    """left @ right + total in fp32. fp32 factors are not rounded to tf32."""
    if INTERPRETED:
        # Triton's interpreter keeps bf16 as uint16 and would multiply those integers.
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def _tile(rows, firsts, widths, tile, end):
    """What a tile column knows of a tile; zeros past the end. Read one turn early."""
    there = tile < end
    row = tl.load(rows + tile, mask=there, other=0)
    first = tl.load(firsts + tile, mask=there, other=0)
    return row, first, tl.load(widths + tile, mask=there, other=0)


@_tuned(_token_configs(), "num_rows", "num_columns", "SIZE")
@triton.jit
def _forward(
    x,
    values,
    y,
    row_starts,
    columns,
    num_tokens,
    magnitude,  # of num_tokens: only a key of the tuner
    num_rows,
    num_columns,  # tile columns: only a key of the tuner
    x_token,
    x_feature,
    y_token,
    y_feature,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """One program: BLOCK_T tokens x one tile row of y. No live tile gives zeros."""
    row = tl.program_id(0) % num_rows
    before = (tl.program_id(0) // num_rows).to(tl.int64) * BLOCK_T
    token, side, step = tl.arange(0, BLOCK_T), tl.arange(0, SIZE), tl.arange(0, DEPTH)
    inside = (token < num_tokens - before)[:, None]
    start = tl.load(row_starts + row)
    stride = (tl.load(row_starts + row + 1) - start) * SIZE
    # W^T of the tile row: [in, out]. The live inputs of an output lie side by side.
    weight = values + start.to(tl.int64) * (SIZE * SIZE) + (side[None, :] * stride + step[:, None])
    source = x + before * x_token + (token[:, None] * x_token + step[None, :] * x_feature)
    total = tl.zeros((BLOCK_T, SIZE), dtype=tl.float32)
    # Two helps for the compiler, without which it does not copy x ahead in pieces of 16 bytes: the
    # column is read one turn early, so that no address waits for a load of its own turn, and
    # `at % SIZE` is said to be a multiple of DEPTH. Compiled for sm_90 with both, a program of 128
    # tokens x 128 features needs 124 registers a thread and 98 KB, so that an SM holds two; without
    # them 184, and it loads 2 bytes at a time.
    column = tl.load(columns + start, mask=stride > 0, other=0)
    for at in range(0, stride, DEPTH):
        inner = tl.multiple_of(at % SIZE, DEPTH)
        left_at = source + (column.to(tl.int64) * SIZE + inner) * x_feature
        left = tl.load(left_at, mask=inside, other=0.0)
        total = _multiply_add(left, tl.load(weight + at), total)
        ahead = at + DEPTH
        column = tl.load(columns + start + ahead // SIZE, mask=ahead < stride, other=0)
    target = y + before * y_token + row.to(tl.int64) * SIZE * y_feature
    target += token[:, None] * y_token + side[None, :] * y_feature
    tl.store(target, total.to(y.dtype.element_ty), mask=inside)


@_tuned(_token_configs(), "num_rows", "num_columns", "SIZE")
@triton.jit
def _grad_input(
    dy,
    values,
    dx,
    column_starts,
    rows,
    firsts,
    widths,
    num_tokens,
    magnitude,  # of num_tokens: only a key of the tuner
    num_rows,  # tile rows: only a key of the tuner
    num_columns,
    dy_token,
    dy_feature,
    dx_token,
    dx_feature,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """One program: BLOCK_T tokens x one tile column of dx."""
    column = tl.program_id(0) % num_columns
    before = (tl.program_id(0) // num_columns).to(tl.int64) * BLOCK_T
    token, side, step = tl.arange(0, BLOCK_T), tl.arange(0, SIZE), tl.arange(0, DEPTH)
    inside = (token < num_tokens - before)[:, None]
    source = dy + before * dy_token + (token[:, None] * dy_token + step[None, :] * dy_feature)
    total = tl.zeros((BLOCK_T, SIZE), dtype=tl.float32)
    start = tl.load(column_starts + column)
    end = tl.load(column_starts + column + 1)
    row, first, width = _tile(rows, firsts, widths, start, end)
    for at in range(start * SIZE, end * SIZE, DEPTH):
        inner = tl.multiple_of(at % SIZE, DEPTH)
        left_at = source + (row.to(tl.int64) * SIZE + inner) * dy_feature
        left = tl.load(left_at, mask=inside, other=0.0)
        stride = width * SIZE
        weight = values + first.to(tl.int64) * SIZE + inner * stride
        right = tl.load(weight + (step[:, None] * stride + side[None, :]))
        total = _multiply_add(left, right, total)
        row, first, width = _tile(rows, firsts, widths, (at + DEPTH) // SIZE, end)
    target = dx + before * dx_token + column.to(tl.int64) * SIZE * dx_feature
    target += token[:, None] * dx_token + side[None, :] * dx_feature
    tl.store(target, total.to(dx.dtype.element_ty), mask=inside)


@_tuned(_sum_configs(), "num_tiles", "SIZE")
@triton.jit
def _grad_values(
    dy,
    x,
    out,
    row_starts,
    tile_rows,
    columns,
    num_tokens,
    magnitude,  # of num_tokens: only a key of the tuner
    num_tiles,
    tokens_per_part,
    num_values,
    dy_token,
    dy_feature,
    x_token,
    x_feature,
    SIZE: tl.constexpr,
    STEP: tl.constexpr,
):
    """One program: one tile of dW, summed over one part of the tokens, into out[part]."""
    tile = tl.program_id(0) % num_tiles
    part = tl.program_id(0) // num_tiles
    side = tl.arange(0, SIZE)
    row = tl.load(tile_rows + tile)
    start = tl.load(row_starts + row)
    stride = (tl.load(row_starts + row + 1) - start) * SIZE
    left_feature = row.to(tl.int64) * SIZE + side
    right_feature = tl.load(columns + tile).to(tl.int64) * SIZE + side
    left_at = dy + left_feature[:, None] * dy_feature
    right_at = x + right_feature[None, :] * x_feature
    first = part * tokens_per_part
    last = tl.minimum(first + tokens_per_part, num_tokens)
    total = tl.zeros((SIZE, SIZE), dtype=tl.float32)
    for begin in range(first, last, STEP):
        token = (begin + tl.arange(0, STEP)).to(tl.int64)
        inside = token < last
        left = tl.load(left_at + token[None, :] * dy_token, mask=inside[None, :], other=0.0)
        right = tl.load(right_at + token[:, None] * x_token, mask=inside[:, None], other=0.0)
        total = _multiply_add(left, right, total)
    target = out + part.to(tl.int64) * num_values + start.to(tl.int64) * (SIZE * SIZE)
    target += (tile - start) * SIZE
    tl.store(target + side[:, None] * stride + side[None, :], total.to(out.dtype.element_ty))


def forward_product(
    x: Tensor, values: Tensor, row_starts: Tensor, columns: Tensor, *, size: int, out: Tensor
) -> None:
    """out [T, O] = x [T, I] W^T; any strides, one dtype."""
    num_rows, num_columns = row_starts.numel() - 1, x.shape[1] // size
    if not out.numel():
        return
    with on_device_of(x):
        _forward[lambda meta: (triton.cdiv(x.shape[0], meta["BLOCK_T"]) * num_rows,)](
            x,
            values,
            out,
            row_starts,
            columns,
            x.shape[0],
            _magnitude(x.shape[0]),
            num_rows,
            num_columns,
            *_strides(x),
            *_strides(out),
            SIZE=size,
            DEPTH=min(size, _step(values)),
        )


def grad_input(
    dy: Tensor,
    values: Tensor,
    transposed: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    size: int,
    out: Tensor,
) -> None:
    """out [T, I] = dy [T, O] W; `transposed` = (column_starts, rows, firsts, widths)."""
    num_rows, num_columns = dy.shape[1] // size, out.shape[1] // size
    if not out.numel():
        return
    with on_device_of(dy):
        _grad_input[lambda meta: (triton.cdiv(dy.shape[0], meta["BLOCK_T"]) * num_columns,)](
            dy,
            values,
            out,
            *transposed,
            dy.shape[0],
            _magnitude(dy.shape[0]),
            num_rows,
            num_columns,
            *_strides(dy),
            *_strides(out),
            SIZE=size,
            DEPTH=min(size, _step(values)),
        )


def grad_values(
    dy: Tensor,
    x: Tensor,
    row_starts: Tensor,
    tile_rows: Tensor,
    columns: Tensor,
    *,
    size: int,
    out: Tensor,
) -> None:
    """out [N] = the live cells of dy^T x.

    A small matrix has fewer tiles than the GPU has SMs, so the tokens are cut into parts and the
    parts, in fp32, are added in a fixed order: no atomics, the same bits each time.
    """
    num_tokens, num_tiles = dy.shape[0], columns.numel()
    if not num_tiles:
        return
    wanted = choose_num_parts(num_tokens, num_tiles, _num_sms(dy.device))
    num_steps = triton.cdiv(triton.cdiv(num_tokens, wanted), STEP)
    tokens_per_part = max(1, num_steps) * STEP
    num_parts = max(1, triton.cdiv(num_tokens, tokens_per_part))
    parts = out
    if num_parts > 1:
        parts = torch.empty(num_parts, out.numel(), dtype=torch.float32, device=out.device)
    with on_device_of(dy):
        _grad_values[(num_parts * num_tiles,)](
            dy,
            x,
            parts,
            row_starts,
            tile_rows,
            columns,
            num_tokens,
            _magnitude(num_tokens),
            num_tiles,
            tokens_per_part,
            out.numel(),
            *_strides(dy),
            *_strides(x),
            SIZE=size,
            STEP=_step(x),
        )
    if num_parts > 1:
        out.copy_(parts.sum(0))


@functools.cache  # up to 4 ms of host time at 65,536 tokens, for every product of every backward
def choose_num_parts(num_tokens: int, num_tiles: int, num_sms: int) -> int:
    """Parts of the tokens with the least estimated time for dW, at least 1.

    Programs run in waves of one for each SM; time is counted in tokens of one program. It depends
    on sizes and the kind of GPU only, so that equal runs sum in equal order.
    """

    def time(parts: int) -> float:
        waves = triton.cdiv(parts * num_tiles, num_sms)
        adding = PART_COST_TOKENS * parts * num_tiles if parts > 1 else 0.0
        return waves * triton.cdiv(num_tokens, parts) + adding

    return min(range(1, max(1, num_tokens // STEP) + 1), key=time)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    # Where a block begins is counted in int64; inside a block, of 256 tokens at most, in int32.
    assert max(tensor.stride()) < 2**23, tensor.stride()
    return tensor.stride()


def _step(tensor: Tensor) -> int:
    return STEP_FP32 if tensor.dtype == torch.float32 else STEP


@functools.cache
def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
