"""Our attention: a plain softmax at any size, equal bits, nothing outside; elsewhere torch's."""

import ctypes
import functools
import math
import mmap

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsecl.model import attention
from sparsecl.model.attention import causal_attention
from tests.sparse.test_native import guarded, in_a_fork

built = pytest.mark.skipif(attention._library() is None, reason="no compiler, or no AVX-512")
# [B, H, KV, T, D]: one of everything, remainders on every side, blocks and one token more.
SIZES = [
    (1, 1, 1, 1, 1), (2, 3, 3, 7, 5), (1, 2, 1, 63, 64), (1, 4, 2, 64, 32), (2, 2, 2, 65, 80),
    (1, 1, 1, 513, 64), (1, 2, 2, 130, 256), (1, 6, 2, 129, 17), (1, 1, 1, 1100, 16),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _short_texts_too(monkeypatch):
    monkeypatch.setattr(attention, "MIN_TOKENS", 1)


@functools.cache
def given(size, dtype=torch.float32):
    """q, k and v as linears give them, and the gradient of the result: [B, T, heads * D]."""
    batch, heads, groups, tokens, width = size
    generator = torch.Generator().manual_seed(tokens)
    return tuple(
        torch.randn(batch, tokens, num * width, generator=generator).to(dtype)
        for num in (heads, groups, groups, heads)
    )


def results(case, width, function=causal_attention):
    """Attention and its three gradients, of whole features."""
    *inputs, grad = case
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*(x.unflatten(-1, (-1, width)).transpose(1, 2) for x in leaves))
    y = y.transpose(1, 2).flatten(2)
    return (y.detach(), *torch.autograd.grad(y, leaves, grad))


def plain(q, k, v):
    """By the definition."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -math.inf).softmax(-1) @ v


def close(found, case, width):
    wanted = results([x.double() for x in case], width, plain)
    for mine, other in zip(found, wanted, strict=True):
        assert mine.shape == other.shape and mine.dtype == torch.float32
        assert (mine - other).abs().max() <= 1e-5 * max(1e-3, float(other.abs().max()))


def counted(monkeypatch):
    calls, real = [], attention._call
    monkeypatch.setattr(attention, "_call", lambda *a: (calls.append(a[0]), real(*a)))
    return calls


@built
@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_softmax_of_fp64(size, monkeypatch):
    calls = counted(monkeypatch)
    close(results(given(size), size[-1]), given(size), size[-1])
    assert calls == ["attention", "attention_gradient"]


@built
def test_threads_and_batches_make_no_difference_to_a_bit(monkeypatch):
    size = (3, 4, 2, 100, 24)
    monkeypatch.setattr(attention, "_threads", lambda *_: 1)
    first = results(given(size), 24)
    for threads in (2, 3):
        monkeypatch.setattr(attention, "_threads", lambda *_, num=threads: num)
        assert all(map(torch.equal, results(given(size), 24), first))
    for row in range(3):
        alone = results([x[row : row + 1] for x in given(size)], 24)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, first, strict=True))
    half = [x[..., : x.shape[-1] // 2] for x in given(size)]  # as a tensor-parallel rank has them
    for mine, whole in zip(results(half, 24), first, strict=True):
        assert torch.equal(mine, whole[..., : mine.shape[-1]])


@built
def test_strides_make_no_difference_and_the_result_lies_by_position():
    q, k, v = (x.unflatten(-1, (-1, 8)).transpose(1, 2) for x in given((2, 3, 3, 40, 8))[:3])
    y = causal_attention(q, k, v)
    assert y.transpose(1, 2).is_contiguous()
    assert torch.equal(y, causal_attention(q.contiguous(), k.contiguous(), v.contiguous()))
    turned = q.transpose(2, 3).contiguous().transpose(2, 3)  # the width is not contiguous
    spread = v[:, :1].expand_as(v)
    assert torch.equal(y, causal_attention(turned, k, v))
    assert torch.equal(causal_attention(q, k, spread), causal_attention(q, k, spread.contiguous()))
    q = q.detach().requires_grad_()
    (by_sum,) = torch.autograd.grad(causal_attention(q, k, v).sum(), q)  # strides of zero
    (by_ones,) = torch.autograd.grad(causal_attention(q, k, v), q, torch.ones_like(q))
    assert torch.equal(by_sum, by_ones) and by_sum.transpose(1, 2).is_contiguous()


@built
def test_large_scores_and_what_is_not_finite():
    q, k, v, grad = (x.clone() for x in given((1, 2, 2, 200, 16)))
    case = (30 * q, 30 * k, v, grad)
    y = results(case, 16)[0]
    wanted = results([x.double() for x in case], 16, plain)[0]
    assert (y - wanted).abs().max() < 1e-3  # scores of some thousands, rounded to 2^-13
    k[0, 150, 3] = math.nan  # of the first head
    y = results((q, k, v, grad), 16)[0]
    assert y[0, 150:, :16].isnan().all()
    assert not y[0, :150].isnan().any() and not y[..., 16:].isnan().any()


@built
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_outside_is_touched(at_end, monkeypatch):
    """Every tensor ends, or begins, at a page that must not be touched."""
    real, kept = attention._call, []

    def call(name, tensors, sums):
        copies = {}
        for key, x in tensors.items():
            inside = guarded(x.transpose(1, 2).contiguous(), at_end, kept)
            copies[key] = inside.transpose(1, 2)
        inside = guarded(sums, at_end, kept)
        real(name, copies, inside)
        sums.copy_(inside)
        for key, x in tensors.items():
            x.copy_(copies[key])

    def room(wanted):
        return guarded(torch.full((wanted,), math.nan), at_end, kept)  # whole lines of the cache

    monkeypatch.setattr(attention, "_call", call)
    monkeypatch.setattr(attention, "_scratch", room)
    monkeypatch.setattr(attention, "_threads", lambda batch, heads, groups, *_: min(2, groups))

    def every_size():
        for size in SIZES:
            close(results(given(size), size[-1]), given(size), size[-1])

    in_a_fork(every_size)
    assert mmap.PAGESIZE % 64 == 0 and ctypes.sizeof(attention.Heads) == 32


def test_what_the_c_does_not_know_is_computed_by_torch(monkeypatch):
    calls = counted(monkeypatch)
    size = (1, 2, 1, 9, 8)
    for dtype in (torch.float64, torch.bfloat16):
        case = given(size, dtype)
        wanted = results(case, 8, plain)
        for mine, other in zip(results(case, 8), wanted, strict=True):
            torch.testing.assert_close(mine, other, rtol=0.05, atol=0.05)
    q, k, v = (x.unflatten(-1, (-1, 8)).transpose(1, 2) for x in given(size)[:3])
    with torch.autocast("cpu", torch.bfloat16):
        assert causal_attention(q, k, v).dtype == torch.bfloat16
    (wanted,) = torch.autograd.grad(plain(leaf := q.clone().requires_grad_(), k, v).sum(), leaf)
    found = torch.func.grad(lambda q: causal_attention(q, k, v).sum())(q)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    for owner, name, value in (
        (torch.compiler, "is_compiling", True),
        (attention, "_library", None),
        (torch.backends.cuda, "flash_sdp_enabled", False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda value=value: value)
            torch.testing.assert_close(causal_attention(q, k, v), plain(q, k, v))
    monkeypatch.setattr(attention, "MIN_TOKENS", 10)
    torch.testing.assert_close(causal_attention(q, k, v), plain(q, k, v))
    assert not calls


@built
def test_a_second_derivative_is_refused():
    x = torch.randn(1, 1, 3, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(causal_attention(x, x, x).sum(), x, create_graph=True)
    with sdpa_kernel(SDPBackend.MATH):
        y = causal_attention(x, x, x)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    first.sum().backward()
    assert x.grad.any()


@built
def test_it_agrees_with_torch():
    case = given((2, 4, 2, 96, 32))

    def torchs(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    for mine, other in zip(results(case, 32), results(case, 32, torchs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
