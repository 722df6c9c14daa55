"""Expansion and gathering of live values, by hand and as inverses."""

import numpy as np
import pytest
import torch

from sparsecl.sparse.index import LiveIndex

# 8 weights, [O=2, I=4]; live: (0,1), (0,3), (1,0).
MASK = np.array([[False, True, False, True], [True, False, False, False]])


def random_mask(rows: int, columns: int, density: float) -> np.ndarray:
    return np.random.default_rng(0).random((rows, columns)) < density


def test_by_hand():
    index = LiveIndex(MASK)
    assert (index.num_live, index.num_cells, index.is_full) == (3, 8, False)
    assert index.positions().tolist() == [1, 3, 4]
    dense = index.expand(torch.tensor([2.0, -1.0, 3.0]))
    assert dense.tolist() == [[0.0, 2.0, 0.0, -1.0], [3.0, 0.0, 0.0, 0.0]]
    assert index.gather(torch.arange(8.0).view(2, 4)).tolist() == [1.0, 3.0, 4.0]
    assert index.mask().tolist() == MASK.tolist()


@pytest.mark.parametrize(
    ("density", "kind"), [(0.01, "flat"), (0.03, "flat"), (0.05, "bits"), (0.5, "bits")]
)
def test_the_smaller_form_is_kept(density, kind):
    mask = random_mask(128, 96, density)
    index = LiveIndex(mask)
    assert [name for name in ("bits", "flat") if getattr(index, name) is not None] == [kind]
    as_int32, as_bits = 4 * index.num_live, mask.size / 8
    assert index.index_bytes <= 1.1 * min(as_int32, as_bits)
    assert index.positions().tolist() == np.flatnonzero(mask).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_gather_undoes_expand(density, dtype):
    mask = random_mask(17, 31, density)
    index = LiveIndex(mask)
    values = torch.randn(index.num_live).to(dtype)
    dense = index.expand(values)
    assert torch.equal(index.gather(dense), values)
    assert (dense[~torch.from_numpy(mask)] == 0).all()
    assert dense.dtype == dtype


def test_all_live_is_a_view_without_an_index():
    index = LiveIndex(np.ones((3, 5), dtype=bool))
    values = torch.arange(15.0)
    assert index.expand(values).data_ptr() == values.data_ptr()
    assert index.index_bytes == 0


def test_a_cast_of_the_model_leaves_the_index_alone():
    index = LiveIndex(MASK).to(torch.bfloat16)
    assert index.positions().tolist() == [1, 3, 4]
    assert not list(index.state_dict())
