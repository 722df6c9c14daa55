"""The block backend: by hand, against float64 products, on the CPU and as Triton kernels.

The kernels run under Triton's interpreter in a child process (interpreted.py), and on a GPU where
there is one.
"""

import importlib.util
from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsecl.sparse import kernels
from sparsecl.sparse.block import BlockBackend
from tests.sparse.interpreted import run_cases

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}

# name: (tile rows, tile columns, size, density of tiles)
MASKS = {
    "random_1": (7, 10, 1, 0.3),
    "random_2": (6, 5, 2, 0.4),
    "random_4": (5, 8, 4, 0.3),
    "random_16": (4, 3, 16, 0.5),
    "random_32": (3, 4, 32, 0.5),
    "random_48": (2, 2, 48, 0.5),
    "wide_64": (1, 3, 64, 0.7),
    "tall_128": (3, 1, 128, 0.7),
    "empty_rows_and_columns": (5, 5, 16, 0.1),
    "all_live": (3, 2, 16, 1.0),
    "one_tile": (1, 1, 16, 1.0),
    "none_live": (2, 3, 16, 0.0),
}
LAYOUTS = ["plain", "feature_major", "every_second", "expanded"]


def tile_mask(name):
    """bool mask [O, I] of a name in MASKS."""
    rows, columns, size, density = MASKS[name]
    tiles = np.zeros(rows * columns, dtype=bool)
    picked = np.random.default_rng(len(name)).permutation(tiles.size)
    tiles[picked[: round(density * tiles.size)]] = True
    return np.kron(tiles.reshape(rows, columns), np.ones((size, size), dtype=bool))


def activation(num_tokens, num_features, layout, dtype, seed):
    """[T, F] in one of several strides."""
    generator = torch.Generator().manual_seed(seed)
    if layout == "feature_major":
        return torch.randn(num_features, num_tokens, generator=generator).to(dtype).t()
    if layout == "every_second":
        return torch.randn(num_tokens, 2 * num_features, generator=generator).to(dtype)[:, ::2]
    if layout == "expanded":
        return torch.randn(1, num_features, generator=generator).to(dtype).expand(num_tokens, -1)
    return torch.randn(num_tokens, num_features, generator=generator).to(dtype)


def check_products(name, dtype, layout="plain", num_tokens=37, device="cpu"):
    """All three products of a mask against float64 products with the matrix."""
    mask = tile_mask(name)
    live = torch.from_numpy(mask)
    backend = BlockBackend(mask, MASKS[name][2]).to(device)
    values = torch.randn(int(mask.sum()), generator=torch.Generator().manual_seed(3)).to(dtype)
    x = activation(num_tokens, mask.shape[1], layout, dtype, 4)
    dy = activation(num_tokens, mask.shape[0], layout, dtype, 5)
    matrix = torch.zeros(mask.shape, dtype=torch.float64)
    matrix[live] = values.double()
    on_device = [tensor.to(device) for tensor in (x, dy, values)]
    if layout != "plain" and device == "cpu":
        assert not on_device[0].is_contiguous()
    x_there, dy_there, values_there = on_device
    results = (
        (backend.forward_product(x_there, values_there), x.double() @ matrix.T),
        (backend.grad_input(dy_there, values_there), dy.double() @ matrix),
        (backend.grad_values(dy_there, x_there), (dy.double().T @ x.double())[live]),
    )
    for found, expected in results:
        assert found.dtype == dtype and found.shape == expected.shape
        # Relative to the largest entry: sums of both signs may cancel.
        scale = float(expected.abs().max()) if expected.numel() else 1.0
        error = (found.cpu().double() - expected).abs()
        assert (error <= TOLERANCE[dtype] * max(scale, 1.0)).all(), float(error.max())


def with_kernels(check, *arguments, num_sms=1):
    """Run a check with the kernels in place of torch's operations, as on a GPU with `num_sms`."""
    from sparsecl.sparse import block_kernels

    with (
        mock.patch.object(kernels, "available", return_value=True),
        mock.patch.object(block_kernels, "_num_sms", return_value=num_sms),
        mock.patch.object(
            block_kernels, "grad_values", side_effect=block_kernels.grad_values
        ) as used,
    ):
        check(*arguments)
    fits = MASKS[arguments[0]][2] >= 16 and arguments[1] != torch.float64
    assert used.called == fits


def check_num_parts():
    """205 tiles fill 132 SMs badly twice over; 29 tiles leave most of them idle."""
    from sparsecl.sparse.block_kernels import choose_num_parts

    assert choose_num_parts(8192, num_tiles=1000, num_sms=132) == 1
    # 3 parts: 5 waves of 2731 tokens + 1722 for the sums = 15377, against 2 waves of 8192.
    assert choose_num_parts(8192, num_tiles=205, num_sms=132) == 3
    # 9 parts: 2 waves of 911 tokens + 731; 4 parts: 1 wave of 2048 + 325 = 2373.
    assert choose_num_parts(8192, num_tiles=29, num_sms=132) == 4
    assert choose_num_parts(5, num_tiles=2, num_sms=132) == 1


def check_parts_are_chosen_once():
    """A backward pass computes nothing on the host that an earlier one has found."""
    from sparsecl.sparse.block_kernels import choose_num_parts

    choose_num_parts.cache_clear()
    for _ in range(3):
        with_kernels(check_products, "random_16", torch.float32)
    found = choose_num_parts.cache_info()
    assert found.misses == 1 and found.hits >= 2, found


CASES = {
    "num_parts": (check_num_parts, ()),
    "parts_are_chosen_once": (check_parts_are_chosen_once, ()),
}
for _name in MASKS:
    CASES[_name] = (with_kernels, (check_products, _name, torch.float32))
for _dtype in (torch.bfloat16, torch.float16, torch.float64):
    CASES[f"{_dtype}"] = (with_kernels, (check_products, "random_16", _dtype))
for _layout in LAYOUTS[1:]:
    CASES[_layout] = (with_kernels, (check_products, "random_16", torch.float32, _layout))


def check_parts():
    """Tokens in several parts, the last of them short: 300 tokens, 6 tiles, 50 SMs."""
    with_kernels(check_products, "random_16", torch.bfloat16, "plain", 300, num_sms=50)


CASES["parts"] = (check_parts, ())


@pytest.fixture(scope="module")
def interpreted():
    return run_cases("tests.sparse.test_block")


@pytest.mark.fault("G4")
@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_kernels_interpreted(case, interpreted):
    assert interpreted[case] == "passed", interpreted[case]


@gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MASKS)
def test_on_the_device(name, dtype):
    for layout in LAYOUTS:
        check_products(name, dtype, layout, num_tokens=1333, device="cuda")


@gpu
@needs_gpu
def test_the_device_gives_the_same_bits_twice():
    mask = tile_mask("random_16")
    backend = BlockBackend(mask, 16).cuda()
    x = activation(5000, mask.shape[1], "plain", torch.bfloat16, 0).cuda()
    dy = activation(5000, mask.shape[0], "plain", torch.bfloat16, 1).cuda()
    assert torch.equal(backend.grad_values(dy, x), backend.grad_values(dy, x))


def compiled(kernel, constants, *, num_warps):
    """PTX of a kernel for a Hopper GPU; none is needed. Row-major bf16 activations."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    function = kernel.fn  # what the autotuner wraps
    names = function.arg_names
    floats = {"x", "dy", "y", "dx", "values"}
    pointers = {name: "*bf16" for name in floats} | {"out": "*fp32"}
    indices = {"row_starts", "tile_rows", "columns", "column_starts", "rows", "firsts", "widths"}
    pointers |= dict.fromkeys(indices, "*i32")
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i32") for n in names}
    aligned = set(pointers) | {"x_token", "dy_token", "y_token", "dx_token"}
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in names if n in aligned},
    )
    target, options = GPUTarget("cuda", 90, 32), {"num_warps": num_warps, "num_stages": 3}
    return compile(source, target=target, options=options).asm["ptx"]


@needs_triton
@pytest.mark.parametrize("name", ["_forward", "_grad_input", "_grad_values"])
def test_compiled_kernels_read_16_bytes_ahead_and_use_tensor_cores(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from sparsecl.sparse import block_kernels

    kernel = getattr(block_kernels, name)
    constants = {"SIZE": 128, "DEPTH": 64, "STEP": 64, "BLOCK_T": 128}
    constants |= dict.fromkeys(("x_feature", "y_feature", "dy_feature", "dx_feature"), 1)
    names = kernel.fn.arg_names
    ptx = compiled(kernel, {n: v for n, v in constants.items() if n in names}, num_warps=8)
    assert "wgmma.mma_async" in ptx
    copies = [line for line in ptx.splitlines() if "cp.async.cg" in line]
    # Two steps of both factors before the loop and one in it: 3 * (2 * 128 * 64) bf16 in pieces of
    # 8, by 256 threads.
    assert len(copies) == 3 * (2 * 128 * 64) // 8 // 256
    assert all(", 0x10, " in line for line in copies)
    assert "ld.global.b16" not in ptx


def test_by_hand():
    # [O=2, I=4] in tiles of 2: the left one is dead. Values by row: 1 2 / 3 4.
    backend = BlockBackend(np.array([[0, 0, 1, 1], [0, 0, 1, 1]], dtype=bool), 2)
    values, x = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    assert backend.forward_product(x, values).tolist() == [[2100.0, 4300.0]]
    dy = torch.tensor([[1.0, 2.0]])
    assert backend.grad_input(dy, values).tolist() == [[0.0, 0.0, 7.0, 10.0]]
    assert backend.grad_values(dy, x).tolist() == [100.0, 1000.0, 200.0, 2000.0]


def test_plan_by_hand():
    # Tiles of 1 in a 3 x 3 matrix; live: (0, 1), (0, 2), (2, 0), (2, 2). Tile row 1 is empty.
    backend = BlockBackend(np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1]], dtype=bool), 1)
    assert backend.row_starts.tolist() == [0, 2, 2, 4]
    assert backend.tile_rows.tolist() == [0, 0, 2, 2]
    assert backend.columns.tolist() == [1, 2, 0, 2]
    assert backend.column_starts.tolist() == [0, 1, 2, 4]
    assert backend.rows.tolist() == [2, 0, 0, 2]
    assert backend.firsts.tolist() == [2, 0, 1, 3]
    assert backend.widths.tolist() == [2, 2, 2, 2]
    assert backend.index_bytes == 4 * (4 + 4 + 5 * 4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MASKS)
def test_products_on_the_cpu(name, dtype):
    check_products(name, dtype)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_any_strides(layout):
    check_products("random_4", torch.float32, layout)


@pytest.mark.parametrize("num_tokens", [0, 1, 64, 65, 150])
def test_tokens_that_fill_no_chunk(num_tokens, monkeypatch):
    monkeypatch.setattr("sparsecl.sparse.block.CHUNK_TOKENS", 64)
    for name in ("random_4", "empty_rows_and_columns"):
        check_products(name, torch.float32, num_tokens=num_tokens)


def test_arranged_activations_give_the_same():
    backend = BlockBackend(tile_mask("random_4"), 4)
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    values = torch.ones(backend.columns.numel() * 16)
    arranged = backend.arrange(x)
    assert arranged.stride() == (1, 9)
    assert backend.arrange(arranged).data_ptr() == arranged.data_ptr()
    assert torch.equal(
        backend.forward_product(x, values), backend.forward_product(arranged, values)
    )


def test_indices_follow_the_device_and_keep_their_type():
    backend = BlockBackend(tile_mask("random_16"), 16).to(torch.bfloat16)
    assert all(buffer.dtype == torch.int32 for buffer in backend.buffers())
    assert not backend.state_dict()


def test_refusals():
    with pytest.raises(ValueError, match="tiles of 3 do not divide a 4 x 6 matrix"):
        BlockBackend(np.ones((4, 6), dtype=bool), 3)
    mask = np.ones((4, 6), dtype=bool)
    mask[3, 4] = False
    with pytest.raises(ValueError, match=r"tile \(1, 2\) of 2 x 3 is partly live"):
        BlockBackend(mask, 2)


class LargestTensor(TorchDispatchMode):
    """Notes the largest storage that any operation returns, in elements."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                size = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.largest = max(self.largest, size)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_size_of_the_matrix_is_allocated(dtype):
    # 512 x 512 cells, 1 tile of 16 alive in each row and column; 8 tokens.
    mask = np.kron(np.eye(32, dtype=bool), np.ones((16, 16), dtype=bool))
    backend = BlockBackend(mask, 16)
    x, values = torch.ones(8, 512, dtype=dtype), torch.ones(int(mask.sum()), dtype=dtype)
    with LargestTensor() as mode:
        backend.forward_product(x, values)
        backend.grad_input(x, values)
        backend.grad_values(x, x)
    assert mode.largest == values.numel() == mask.size // 32
