"""Causal attention: by our own C (attention.c) on a CPU in fp32, by torch everywhere else.

B = batch, H = heads (KV of keys and values), T = tokens, D = head width; all local. The C takes
torch's number of threads, and gives equal bits for any.
"""

import ctypes
import functools
import math
import threading
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from sparsecl.extension import load_extension

LONG = ctypes.c_int64
MAX_THREADS, MAX_WIDTH = 256, 256

# Of shorter texts the way into our C costs more than it saves, some 70 us forward and backward. The
# number of sequences and heads has no say: a sequence has equal bits in any company.
MIN_TOKENS = 64

# Multiply-adds that pay for the start of one more thread, which takes some 30 us.
WORTH_A_THREAD = 2**22

_kept = threading.local()
"""Room to work in, of each thread: fresh pages at every call cost time."""


class Heads(ctypes.Structure):
    """A tensor [B, H, T, D] as attention.c sees it; strides in floats."""

    _fields_ = [("data", ctypes.c_void_p), ("batch", LONG), ("head", LONG), ("token", LONG)]


TENSORS = ("q", "k", "v", "o", "dq", "dk", "dv", "grad")
SIZES = ("room", "batch", "heads", "groups", "tokens", "width", "threads")


class Call(ctypes.Structure):
    """What a function of attention.c is given."""

    _fields_ = [
        *((name, Heads) for name in TENSORS),
        *((name, ctypes.c_void_p) for name in ("sums", "scratch")),
        *((name, LONG) for name in SIZES),
        ("scale", ctypes.c_float),
        ("next", LONG),
    ]


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, of each position over itself and those before it.

    Args:
        q: [B, H, T, D], any strides.
        k, v: [B, KV, T, D]; a head of them serves H / KV consecutive ones of q.

    Returns:
        [B, H, T, D]. Where our C computes it, it lies as [B, T, H, D]; so do the gradients.
    """
    if _takes(q, k, v):
        return _Attention.apply(q, k, v)
    # A flag and no mask tensor: only then may torch take its flash kernels (in bf16 and fp16).
    grouped = k.shape[1] < q.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def missing() -> str | None:
    """Why torch computes attention on a machine that our C was written for; None = it does not."""
    if _library() is not None or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    return (
        "the attention kernel is not built (sparsecl was installed without a C compiler, or with a "
        "GCC before 12: install gcc, then sparsecl again)"
    )


def slow(reason: str) -> str:
    """What it means for a run that the kernel is `missing`."""
    return f"{reason}: torch's takes its place, which needs twice as long."


def _takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Our C knows what to do with these, and nobody wants to look into what is done."""
    if not q.is_cpu or q.shape[2] < MIN_TOKENS:  # first, so that a GPU's host asks no more
        return False
    if torch.compiler.is_compiling() or _library() is None:
        return False
    if any(type(x) is not Tensor or x.device.type != "cpu" for x in (q, k, v)):
        return False
    if any(x.dtype != torch.float32 for x in (q, k, v)) or torch.is_autocast_enabled("cpu"):
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    if not torch.backends.cuda.flash_sdp_enabled():  # of a CPU too: somebody asks for torch's math
        return False
    return q.shape[-1] <= MAX_WIDTH and q.numel() > 0 and q.shape[2:] == k.shape[2:] == v.shape[2:]


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (_rows(x) for x in (q, k, v))
        o = _like(q)
        sums = q.new_empty(q.shape[:3])
        _call("attention", {"q": q, "k": k, "v": v, "o": o}, sums)
        ctx.save_for_backward(q, k, v, o, sums)
        return o

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if torch.is_grad_enabled():  # create_graph; what came out would be taken for a constant
            raise RuntimeError(
                "our attention has no second derivative: make the forward pass in "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH), and torch computes it"
            )
        q, k, v, o, sums = ctx.saved_tensors
        dq, dk, dv = (_like(x) for x in (q, k, v))
        given = {"q": q, "k": k, "v": v, "o": o, "grad": _rows(grad)}
        _call("attention_gradient", {**given, "dq": dq, "dk": dk, "dv": dv}, sums)
        return dq, dk, dv


def _rows(x: Tensor) -> Tensor:
    """The same numbers, each head of a position in a row."""
    return x.detach() if x.stride(-1) == 1 or x.shape[-1] == 1 else x.detach().contiguous()


def _like(x: Tensor) -> Tensor:
    """[B, H, T, D], which lies as [B, T, H, D]."""
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _call(name: str, tensors: dict[str, Tensor], sums: Tensor) -> None:
    """Call a function of attention.c; the interpreter runs on while it computes."""
    library = _library()
    assert library is not None
    batch, heads, tokens, width = tensors["q"].shape
    groups = tensors["k"].shape[1]
    assert heads % groups == 0, (heads, groups)
    threads = _threads(batch, heads, groups, tokens, width)
    room = library.sparsecl_attention_room(LONG(tokens), LONG(width), "grad" in tensors)
    scratch = _scratch(threads * room)
    call = Call(
        sums=sums.data_ptr(), scratch=scratch.data_ptr(), room=room, batch=batch, heads=heads,
        groups=groups, tokens=tokens, width=width, threads=threads, scale=1 / math.sqrt(width),
    )  # fmt: skip
    for key, x in tensors.items():
        setattr(call, key, Heads(x.data_ptr(), *x.stride()[:3]))
    getattr(library, f"sparsecl_{name}")(ctypes.byref(call))


def _threads(batch: int, heads: int, groups: int, tokens: int, width: int) -> int:
    """How many threads share the work: they take groups of heads."""
    worth = batch * heads * tokens * tokens * width // WORTH_A_THREAD
    return max(1, min(torch.get_num_threads(), batch * groups, worth, MAX_THREADS))


def _scratch(wanted: int) -> Tensor:
    """torch aligns it to 64 bytes."""
    kept: Tensor | None = getattr(_kept, "room", None)
    if kept is None or kept.numel() < wanted:
        kept = _kept.room = torch.empty(wanted)
    return kept


@functools.cache
def _library() -> ctypes.CDLL | None:
    """What setuptools has built beside this file; None if it has not, or for another machine, or if
    this one has no AVX-512."""
    functions = ("attention", "attention_gradient", "attention_room", "attention_fits")
    names = [f"sparsecl_{name}" for name in functions]
    library = load_extension(Path(__file__).with_name("_attention"), names)
    if library is None:
        return None
    library.sparsecl_attention_room.restype = LONG
    library.sparsecl_attention_fits.restype = ctypes.c_int
    return library if library.sparsecl_attention_fits() else None
