"""native: the products of csr and dense at any size, nothing written outside, equal bits again."""

import ctypes
import itertools
import mmap
import os
import signal
import traceback

import numpy as np
import pytest
import torch

from sparsecl.errors import UserError
from sparsecl.sparse import backends, native
from sparsecl.sparse.backends import LinearOptions
from sparsecl.sparse.csr import CsrBackend
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.sparse.native import NativeBackend
from sparsecl.topology.layer import LayerShape, LayerTopology

built = pytest.mark.skipif(native.missing() is not None, reason="no compiler at installation")
# [O, I], tokens, density: one of everything, remainders on every side, a tile and one token more.
SIZES = [
    (1, 1, 1, 1.0), (1, 40, 7, 0.5), (40, 1, 65, 0.5), (7, 5, 3, 0.9), (16, 16, 64, 0.3),
    (33, 17, 65, 0.1), (48, 80, 200, 0.02), (31, 47, 129, 1.0), (5, 9, 0, 0.5),
]  # fmt: skip


def given(rows, columns, num_tokens, density, dtype=torch.float32):
    """mask, live values, x and dy; rows and columns may be empty."""
    rng = np.random.default_rng(rows * 100 + num_tokens)
    mask = rng.random((rows, columns)) < density
    mask[rng.integers(rows), rng.integers(columns)] = True
    generator = torch.Generator().manual_seed(num_tokens)
    values, x, dy = (
        torch.randn(*size, generator=generator).to(dtype)
        for size in ((int(mask.sum()),), (1, num_tokens, columns), (1, num_tokens, rows))
    )
    return mask, values, x, dy


def results(backend, values, x, dy):
    x, dy = backend.arrange(backend.fold(x)), backend.arrange(backend.fold(dy))
    return (
        backend.restore(backend.forward_product(x, values)),
        backend.restore(backend.grad_input(dy, values)),
        backend.grad_values(dy, x),
    )


def exact(mask, values, x, dy):
    """The same as fp64 matrices."""
    live = torch.from_numpy(mask)
    weight = torch.zeros(mask.shape, dtype=torch.float64)
    weight[live] = values.double()
    x, dy = x.double(), dy.double()
    return x @ weight.T, dy @ weight, (dy[0].T @ x[0])[live]


@built
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_products_are_those_of_matrices(size, threads, monkeypatch):
    monkeypatch.setattr(native, "_threads", lambda live, tokens: min(threads, max(1, tokens // 64)))
    for dtype, tolerance in (
        (torch.float32, 1e-5), (torch.bfloat16, 2**-8), (torch.float16, 2**-10),
        (torch.float64, 1e-12),
    ):  # fmt: skip
        mask, values, x, dy = given(*size, dtype)
        found = results(NativeBackend(mask), values, x, dy)
        for mine, wanted in zip(found, exact(mask, values, x, dy), strict=True):
            assert mine.dtype == dtype and mine.shape == wanted.shape
            torch.testing.assert_close(mine.double(), wanted, rtol=tolerance, atol=tolerance)


@built
def test_csr_and_native_agree():
    mask, values, x, dy = given(96, 64, 300, 0.2)
    for mine, other in zip(
        results(NativeBackend(mask), values, x, dy),
        results(CsrBackend(mask), values, x, dy),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@built
def test_gradients_are_those_of_the_forward_pass():
    mask, values, x, _ = given(6, 5, 70, 0.5)
    layer = ColumnParallelSparseLinear(
        LayerShape("w", "up", 6, 5),
        LayerTopology.from_mask("w", mask),
        options=LinearOptions(storage="packed", backend="native"),
    )
    layer.weight.data.copy_(values)
    x.requires_grad_()
    (layer(x) ** 2).sum().backward()

    def loss(x, values):
        weight = torch.zeros(6, 5, dtype=torch.float64)
        weight[torch.from_numpy(mask)] = values
        return float(((x @ weight.T) ** 2).sum())

    # The loss is of second degree in either: central differences are exact but for rounding.
    at = (x.detach().double(), layer.weight.detach().double())
    for number, gradient in enumerate((x.grad, layer.weight.grad)):
        for where in range(0, gradient.numel(), 7):
            both = []
            for step in (0.5, -0.5):
                moved = [tensor.clone() for tensor in at]
                moved[number].view(-1)[where] += step
                both.append(loss(*moved))
            assert float(gradient.view(-1)[where]) == pytest.approx(both[0] - both[1], rel=1e-4)


@built
def test_strides_of_the_input_make_no_difference():
    mask, values, x, dy = given(24, 32, 90, 0.3)
    plain = results(NativeBackend(mask), values, x, dy)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    spread = dy[:, :1].expand_as(dy)
    for mine, wanted in zip(results(NativeBackend(mask), values, turned, dy), plain, strict=True):
        assert torch.equal(mine, wanted)
    again = results(NativeBackend(mask), values, x, spread)
    whole = results(NativeBackend(mask), values, x, spread.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))


@built
def test_what_is_not_finite_stays_so():
    mask, values, x, dy = given(17, 20, 66, 0.5, torch.bfloat16)
    x[0, 65, 3] = float("nan")
    dy[0, 0, 2] = float("inf")
    y, dx, dw = results(NativeBackend(mask), values, x, dy)
    assert torch.equal(y[0, 65].isnan(), torch.from_numpy(mask[:, 3]))
    assert not y[0, :65].isnan().any()
    assert torch.equal(~dx[0, 0].isfinite(), torch.from_numpy(mask[2]))
    rows, columns = np.nonzero(mask)
    assert torch.equal(~dw.isfinite(), torch.from_numpy((rows == 2) | (columns == 3)))


@built
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_equal_threads_give_equal_bits(threads, monkeypatch):
    monkeypatch.setattr(native, "_threads", lambda live, tokens: threads)
    case = given(64, 48, 700, 0.2)
    first = results(NativeBackend(case[0]), *case[1:])
    for _ in range(5):
        assert all(map(torch.equal, results(NativeBackend(case[0]), *case[1:]), first))


def test_threads_follow_from_the_size_of_the_product(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert native._threads(10, 64) == 1  # too small
    assert native._threads(10**6, 128) == 2  # as many as tiles
    assert native._threads(10**6, 10**4) == 8


def in_a_fork(work) -> None:
    """Run it in a child of this process; a crash or a hang ends the child alone."""
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(60)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@built
def test_a_process_that_was_forked_multiplies_too(monkeypatch):
    monkeypatch.setattr(native, "_threads", lambda live, tokens: 3)
    case = given(64, 48, 700, 0.2)
    before = results(NativeBackend(case[0]), *case[1:])

    def again():
        found = results(NativeBackend(case[0]), *case[1:])
        assert all(map(torch.equal, found, before))

    in_a_fork(again)
    again()


def guarded(tensor, at_end, kept):
    """A copy that ends, or begins, at a page that must not be touched."""
    size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (start, start + (pages + 1) * page):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), page, 0) == 0
    at = page + (pages * page - size if at_end else 0)
    view = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=at)
    return view.view(tensor.shape).copy_(tensor)


@built
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_outside_is_touched(at_end, monkeypatch):
    real, kept = native._call, []

    def call(name, tensors, sizes, dtype):
        inside = tuple(guarded(each, at_end, kept) if each.numel() else each for each in tensors)
        real(name, inside, sizes, dtype)
        for tensor, copy in zip(tensors, inside, strict=True):
            tensor.copy_(copy)

    monkeypatch.setattr(native, "_call", call)
    monkeypatch.setattr(native, "_threads", lambda live, tokens: min(3, max(1, tokens // 64)))

    def every_size():
        for size, dtype in itertools.product(SIZES, (torch.float32, torch.bfloat16)):
            native._kept.__dict__.clear()  # room of exactly the size that is asked for
            mask, *case = given(*size, dtype)
            for mine, wanted in zip(
                results(NativeBackend(mask), *case), exact(mask, *case), strict=True
            ):
                torch.testing.assert_close(mine.double(), wanted, rtol=0.01, atol=0.01)

    in_a_fork(every_size)


def test_where_it_is_not_built_the_word_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(backends, "missing", lambda: "the native kernels are not built")
    with pytest.raises(UserError, match="topology.backend=native: w: the native kernels are not"):
        ColumnParallelSparseLinear(
            LayerShape("w", "up", 2, 2),
            LayerTopology.from_mask("w", np.eye(2, dtype=bool)),
            options=LinearOptions(backend="native"),
        )
