"""Expand packed values to a matrix and gather them back in one pass each, on a GPU (Triton).

N = live values in row-major order of the local mask [O, I]; cells = O * I, flat index o * I + i.
Two forms of the index: a bitmap of the cells (1 bit each) with the live cells before each group of
GROUP cells, or the int32 flat indices of the live cells (4 bytes each), which is smaller below
a density of 1/32.

torch's own operations would write the matrix twice (zeros, then a scatter in 32-byte sectors) and
want int64 indices. Here a program owns GROUP cells, finds the rank of each by a running sum of its
bits and writes them all, so the traffic is one matrix, the live values and the bitmap.

Triton is imported at the first call on a GPU, never by `import`: a CPU machine may lack it.
"""

import functools
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Cells of one program: 4 warps of 32 threads with 8 cells each, which are one byte of the bitmap
# and, in bf16, one 16-byte store. The starts cost 4 bytes for 128 bytes of bitmap.
GROUP = 1024

_INTEGERS_OF = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def available(device: torch.device) -> bool:
    """Whether the kernels can run on `device`: a GPU, and Triton can make kernels.

    Warns once where a GPU is there and Triton cannot; callers then use torch's operations.
    """
    return device.type == "cuda" and _has_triton()


@functools.cache
def _has_triton() -> bool:
    reason = lacking()
    if reason is not None:
        warnings.warn(slow(reason), stacklevel=3)
    return reason is None


@functools.cache
def lacking() -> str | None:
    """What keeps Triton from making kernels here, with the way out; None = nothing.

    It compiles a piece of C against Python.h for every kernel, when that runs for the first time.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (the CUDA builds of torch bring it along)"
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "Triton finds no C compiler (install gcc or clang, or name one in CC)"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton does
    include = sysconfig.get_path("include", scheme)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("#include <Python.h>\n", encoding="ascii")
        command = [compiler, str(source), "-shared", "-fPIC", "-I", include, "-o", f"{source}.so"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError as error:
            return f"Triton's C compiler {compiler} cannot be started ({error.strerror})"
    if done.returncode == 0:
        return None
    why = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
    why = why.replace(f"{source}:", "")
    return f"{compiler} cannot compile against Python.h ({why}; install python3-dev)"


def slow(reason: str) -> str:
    """What it means for a run that kernels are `lacking`."""
    return f"{reason}: packed and block layers use slower torch operations on this GPU."


def make_starts(bits: Tensor, num_cells: int) -> Tensor:
    """Live cells before each group.

    Args:
        bits: uint8 [ceil(num_cells / 8)], most significant bit first, zeros after the last cell.

    Returns:
        int32 [ceil(num_cells / GROUP)], on the device of `bits`.
    """
    assert bits.dtype == torch.uint8 and bits.shape == (-(-num_cells // 8),), (bits, num_cells)
    num_groups = -(-num_cells // GROUP)
    padded = np.zeros(num_groups * (GROUP // 8), dtype=np.uint8)
    padded[: bits.numel()] = bits.cpu().numpy()
    counts = np.bitwise_count(padded.reshape(num_groups, -1)).sum(1, dtype=np.int64)
    assert counts.sum() < 2**31, "more live cells than int32 can count"
    return torch.from_numpy((np.cumsum(counts) - counts).astype(np.int32)).to(bits.device)


def expand_bitmap(values: Tensor, bits: Tensor, starts: Tensor, out: Tensor) -> None:
    """Write values [N] to their cells of `out` [O, I] and zeros to all others.

    The bits of each element are copied as they are. Contiguous tensors of one device; values and
    out have one dtype.
    """
    _check_bitmap(values, out, bits, starts)
    if out.numel():
        _launch("expand_bitmap", starts.numel(), values, bits, starts, out, out.numel())


def gather_bitmap(dense: Tensor, bits: Tensor, starts: Tensor, out: Tensor) -> None:
    """Copy the live cells of `dense` [O, I] to `out` [N]; as `expand_bitmap` otherwise."""
    _check_bitmap(out, dense, bits, starts)
    if out.numel():
        _launch("gather_bitmap", starts.numel(), dense, bits, starts, out, dense.numel())


def expand_index(values: Tensor, index: Tensor, out: Tensor) -> None:
    """`expand_bitmap` from int32 flat indices [N]; for matrices below 2^31 cells.

    It writes zeros first and the live cells after them, which at low density costs little more.
    """
    _check_index(values, out, index)
    out.zero_()
    if index.numel():
        num_programs = -(-index.numel() // GROUP)
        _launch("expand_index", num_programs, values, index, out, index.numel())


def gather_index(dense: Tensor, index: Tensor, out: Tensor) -> None:
    """`gather_bitmap` from int32 flat indices [N]; for matrices below 2^31 cells."""
    _check_index(out, dense, index)
    if index.numel():
        num_programs = -(-index.numel() // GROUP)
        _launch("gather_index", num_programs, dense, index, out, index.numel())


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the device of `tensor` the current one: Triton launches there, wherever tensors lie."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _launch(name: str, num_programs: int, source: Tensor, *rest: Tensor | int) -> None:
    # On the host's way to every packed product, so no more than what is needed.
    moved = [_bits_of(each) if isinstance(each, Tensor) else each for each in (source, *rest)]
    with on_device_of(source):
        _program(name)[(num_programs,)](*moved, GROUP=GROUP)


@functools.cache
def _program(name: str) -> Any:
    from sparsecl.sparse import packed_kernels

    return getattr(packed_kernels, name)


def _bits_of(tensor: Tensor) -> Tensor:
    """The same memory as integers of the same width. Triton asks for its address only, so that a
    parameter need not be detached; other tensors are integers already."""
    dtype = _INTEGERS_OF.get(tensor.dtype)
    return tensor if dtype is None else tensor.view(dtype)


def _check_bitmap(values: Tensor, dense: Tensor, bits: Tensor, starts: Tensor) -> None:
    _check(values, dense, bits, starts)
    assert bits.dtype == torch.uint8 and starts.dtype == torch.int32, (bits.dtype, starts.dtype)
    num_cells = dense.numel()
    assert bits.numel() == -(-num_cells // 8), (bits.shape, dense.shape)
    assert starts.numel() == -(-num_cells // GROUP), (starts.shape, dense.shape)


def _check_index(values: Tensor, dense: Tensor, index: Tensor) -> None:
    _check(values, dense, index)
    assert index.dtype == torch.int32 and index.shape == values.shape, (index.dtype, index.shape)
    assert dense.numel() < 2**31, dense.shape


def _check(values: Tensor, dense: Tensor, *indices: Tensor) -> None:
    assert values.dtype == dense.dtype, (values.dtype, dense.dtype)
    assert values.dim() == 1 and dense.dim() == 2, (values.shape, dense.shape)
    device = dense.device
    for tensor in (values, dense, *indices):
        assert tensor.is_contiguous() and tensor.device == device, "not contiguous, or apart"
