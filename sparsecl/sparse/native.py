"""The native backend: sparse rows on the CPU, multiplied by our own C (native.c).

O = out_features, I = in_features (local), N = live weights, T = tokens. The products are those of
csr, two to three times as fast, on row-major activations in fp32 or bf16 (sums in fp32). Tiles of
tokens are dealt out to torch's number of threads; with equal threads the results are equal bits.

The C is compiled when the package is installed. Without a compiler the package installs all the
same, and `slow` says what that costs.
"""

import ctypes
import functools
import threading
from pathlib import Path

import torch
from torch import Tensor

from sparsecl.extension import load_extension
from sparsecl.sparse.csr import CsrBackend

TILE, LANES = 64, 16  # tokens of the widest tile and of a vector, as in native.c
MAX_THREADS = 256
DTYPES = (torch.float32, torch.bfloat16)

# Multiplications that pay for the start of one more thread, which takes some 30 us.
WORTH_A_THREAD = 2**20

_kept = threading.local()
"""Room to work in, of each thread: fresh pages at every call would cost as much as 1 % live."""


def missing() -> str | None:
    """Why this backend cannot be used here, with the way out; None = it can."""
    if _library() is not None:
        return None
    return (
        "the native kernels are not built (sparsecl was installed without a C compiler, or with a "
        "GCC before 12: install gcc, then sparsecl again)"
    )


def slow(reason: str) -> str:
    """What it means for a run that the kernels are `missing`."""
    return f"{reason}: auto takes csr in their place, which needs two to three times as long."


class NativeBackend(CsrBackend):
    """Products over the indices of csr; fp64 and fp16 are multiplied as csr does it."""

    def is_row_major(self, device: torch.device) -> bool:
        """In fp32 and bf16; what csr gives in other precisions, operators.py copies."""
        return True

    def fold(self, x: Tensor) -> Tensor:
        """[1, T, F]: tiles may hold tokens of two sequences."""
        return x.reshape(1, -1, x.shape[-1])

    def arrange(self, x: Tensor) -> Tensor:
        """As it is: a tile is made of x for each product, in the cache."""
        return x if x.dtype in DTYPES else super().arrange(x)

    def restore(self, x: Tensor) -> Tensor:
        """As it is: the products give row-major results."""
        return x if x.dtype in DTYPES else super().restore(x)

    def forward_product(self, x: Tensor, values: Tensor) -> Tensor:
        """[1, T, I] -> [1, T, O], row-major."""
        if x.dtype not in DTYPES:
            return super().forward_product(x, values)
        return _multiply(x, self.row_starts, self.columns, values)

    def grad_input(self, dy: Tensor, values: Tensor) -> Tensor:
        """[1, T, O] -> [1, T, I], row-major."""
        if dy.dtype not in DTYPES:
            return super().grad_input(dy, values)
        ordered = values.index_select(0, self.order)
        return _multiply(dy, self.transposed_starts, self.rows, ordered)

    def grad_values(self, dy: Tensor, x: Tensor) -> Tensor:
        """Gradient of the live values, [N]."""
        if dy.dtype not in DTYPES:
            return super().grad_values(dy, x)
        dy, x = dy.detach().contiguous(), x.detach().contiguous()
        _, num_tokens, num_inputs = x.shape
        assert dy.dtype == x.dtype, (dy.dtype, x.dtype)
        assert dy.shape == (1, num_tokens, self.out_features), (dy.shape, x.shape)
        num_live = self.columns.numel()
        threads = _threads(num_live, num_tokens)
        gradient = torch.empty(threads, num_live)
        _call(
            "gradient",
            (dy, x, self.row_starts, self.columns, gradient, _scratch(threads, num_inputs)),
            (num_tokens, num_inputs, self.out_features, threads),
            x.dtype,
        )
        whole = gradient[0] if threads == 1 else gradient[0].clone()  # the others are let go
        return whole.to(dy.dtype)


def _multiply(x: Tensor, starts: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """x [1, T, K] with sparse [M, K] -> [1, T, M]."""
    x = x.detach().contiguous()
    _, num_tokens, num_inputs = x.shape
    num_outputs = starts.numel() - 1
    y = x.new_empty(1, num_tokens, num_outputs)
    wide = values.detach().float().contiguous()
    threads = _threads(columns.numel(), num_tokens)
    _call(
        "multiply",
        (x, starts, columns, wide, y, _scratch(threads, num_inputs)),
        (num_tokens, num_inputs, num_outputs, threads),
        x.dtype,
    )
    return y


def _threads(num_live: int, num_tokens: int) -> int:
    """How many threads a product is dealt out to: they follow from its size and torch's number."""
    worth = num_live * num_tokens // WORTH_A_THREAD
    return max(1, min(torch.get_num_threads(), -(-num_tokens // TILE), worth, MAX_THREADS))


def _scratch(threads: int, num_inputs: int) -> Tensor:
    """Room for a tile and two blocks in each thread; torch aligns it to 64 bytes."""
    wanted = threads * (num_inputs + 2 * LANES) * TILE
    kept: Tensor | None = getattr(_kept, "room", None)
    if kept is None or kept.numel() < wanted:
        kept = _kept.room = torch.empty(wanted)
    return kept


def _call(
    name: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Call a function of native.c; the interpreter runs on while it computes."""
    library = _library()
    assert library is not None
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors)
    function = getattr(library, f"sparsecl_{name}")
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
    function(*pointers, *map(ctypes.c_int64, sizes), ctypes.c_int(dtype == torch.bfloat16))


@functools.cache
def _library() -> ctypes.CDLL | None:
    """What setuptools has built beside this file; None if it has not, or for another machine."""
    functions = ("sparsecl_multiply", "sparsecl_gradient")
    return load_extension(Path(__file__).with_name("_native"), functions)
