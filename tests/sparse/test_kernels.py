"""Expand and gather of packed values: by hand, bit for bit against numpy, NaN payloads kept.

Without a GPU the kernels run under Triton's interpreter, which must be chosen before Triton is
imported: one child process runs those cases, each of them reported as a test of its own.
"""

import importlib.util

import numpy as np
import pytest
import torch

from sparsecl.sparse import kernels
from tests.sparse.interpreted import run_cases

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

SIZES = {
    "by_hand": (2, 4, 0.5),
    "group": (32, 32, 0.3),
    "group_and_one": (25, 41, 0.3),
    "odd": (37, 61, 0.2),
    "all_live": (40, 33, 1.0),
    "none_live": (40, 33, 0.0),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def plan(mask):
    """bits, starts and flat indices of a mask."""
    bits = torch.from_numpy(np.packbits(mask.reshape(-1)))
    flat = torch.from_numpy(np.flatnonzero(mask).astype(np.int32))
    return bits, kernels.make_starts(bits, mask.size), flat


def raw(tensor):
    """The bits of a tensor on the CPU: NaN equals NaN here if the payloads are equal."""
    return tensor.cpu().view(INTEGERS[tensor.element_size()])


def every_pattern(count, dtype):
    """`count` elements with arbitrary bits, NaNs of many payloads and negative zeros included."""
    width = torch.tensor([], dtype=dtype).element_size()
    data = np.random.default_rng(0).integers(0, 256, (count, width), dtype=np.uint8)
    data[:2] = 255  # quiet NaN with all payload bits
    return torch.from_numpy(data.reshape(-1)).view(dtype)


def check_round_trip(size, dtype, device="cpu"):
    """Both indices, both directions, against a boolean assignment on the CPU."""
    out_features, in_features, density = SIZES[size]
    mask = np.random.default_rng(1).random((out_features, in_features)) < density
    values = every_pattern(int(mask.sum()), dtype)
    dense = torch.zeros(mask.shape, dtype=INTEGERS[values.element_size()])
    dense[torch.from_numpy(mask)] = raw(values)
    bits, starts, flat = (tensor.to(device) for tensor in plan(mask))
    values = values.to(device)
    full = dense.to(device).view(dtype)
    for expand, gather, index in (
        (kernels.expand_bitmap, kernels.gather_bitmap, (bits, starts)),
        (kernels.expand_index, kernels.gather_index, (flat,)),
    ):
        expanded = torch.full(mask.shape, 7.0, dtype=dtype, device=device)
        expand(values, *index, expanded)
        assert torch.equal(raw(expanded), dense)
        gathered = torch.full_like(values, 7.0)
        gather(full, *index, gathered)
        assert torch.equal(raw(gathered), raw(values))


def check_by_hand():
    """8 weights; live: (0, 1), (0, 3), (1, 0)."""
    bits, starts, flat = plan(np.array([[0, 1, 0, 1], [1, 0, 0, 0]], dtype=bool))
    assert bits.tolist() == [0b01011000]
    assert (starts.tolist(), flat.tolist()) == ([0], [1, 3, 4])
    values, dense = torch.tensor([2.0, -1.0, 3.0]), torch.full((2, 4), 9.0)
    kernels.expand_bitmap(values, bits, starts, dense)
    assert dense.tolist() == [[0.0, 2.0, 0.0, -1.0], [3.0, 0.0, 0.0, 0.0]]
    gathered = torch.empty(3)
    kernels.gather_bitmap(torch.arange(8.0).view(2, 4), bits, starts, gathered)
    assert gathered.tolist() == [1.0, 3.0, 4.0]


CASES = {"by_hand": (check_by_hand, ())} | {
    f"{size}-{dtype}": (check_round_trip, (size, dtype)) for size in SIZES for dtype in DTYPES
}


@pytest.fixture(scope="module")
def interpreted():
    return run_cases("tests.sparse.test_kernels")


@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_interpreted(case, interpreted):
    assert interpreted[case] == "passed", interpreted[case]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_on_the_device(size, dtype):
    check_round_trip(size, dtype, "cuda")


@pytest.mark.parametrize("num_cells", [1, 1023, 1024, 1025, 5000])
def test_starts_count_the_live_cells_before_each_group(num_cells):
    live = np.random.default_rng(2).random(num_cells) < 0.4
    starts = kernels.make_starts(torch.from_numpy(np.packbits(live)), num_cells)
    assert starts.dtype == torch.int32
    assert starts.tolist() == [int(live[:cell].sum()) for cell in range(0, num_cells, 1024)]


@pytest.mark.parametrize("wrong", ["strided", "dtype", "bits", "starts", "rank", "index"])
def test_wrong_tensors_are_refused(wrong):
    mask = np.ones((4, 300), dtype=bool)
    bits, starts, flat = plan(mask)
    values, dense = torch.zeros(1200), torch.zeros(4, 300)
    arguments = {
        "strided": (values, bits, starts, torch.zeros(300, 4).t()),
        "dtype": (values.half(), bits, starts, dense),
        "bits": (values, bits[1:], starts, dense),
        "starts": (values, bits, starts[:1], dense),
        "rank": (values.view(4, 300), bits, starts, dense),
        "index": (values, flat.long(), dense),
    }[wrong]
    function = kernels.expand_index if wrong == "index" else kernels.expand_bitmap
    with pytest.raises(AssertionError):
        function(*arguments)


def test_missing_triton_is_said_once(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    kernels._has_triton.cache_clear()
    try:
        assert not kernels.available(torch.device("cpu"))
        with pytest.warns(UserWarning, match="Triton is not installed") as caught:
            assert not kernels.available(torch.device("cuda"))
            assert not kernels.available(torch.device("cuda"))
        assert len(caught) == 1
    finally:
        kernels._has_triton.cache_clear()
