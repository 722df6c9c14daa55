"""Drop and grow, by hand on 8 weights, and as a law for both storages and splits."""

import numpy as np
import pytest
import torch

from sparsecl.sparse.backends import LinearOptions
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.sparse.rewire import rewire
from sparsecl.topology.layer import LayerShape, LayerTopology

SHAPE = LayerShape("w", "up", 2, 4)
EDGES = np.array([1, 3, 4], dtype=np.int64)  # (0,1), (0,3), (1,0)
STORAGES = ["masked", "packed"]


def layer(storage: str, **options) -> ColumnParallelSparseLinear:
    made = ColumnParallelSparseLinear(
        SHAPE,
        LayerTopology("w", 2, 4, EDGES),
        options=LinearOptions(storage=storage, **options),
    )
    made.fill(torch.tensor([[0.0, 1.0, 0.0, 3.0], [4.0, 0.0, 0.0, 0.0]]))
    return made


@pytest.mark.parametrize("storage", STORAGES)
def test_by_hand(storage):
    """(0,1) goes, (1,2) comes: the others keep their values, whatever slot they have now."""
    made = layer(storage)
    moved = rewire(made, torch.tensor([1]), torch.tensor([6])).move(made.weight.detach().view(-1))
    assert made.live_mask().tolist() == [[False, False, False, True], [True, False, True, False]]
    assert made.topology.edges.tolist() == [3, 4, 6]
    made.weight.data.copy_(moved.view(made.weight.shape))
    assert made.matrix().tolist() == [[0.0, 0.0, 0.0, 3.0], [4.0, 0.0, 0.0, 0.0]]
    assert made(torch.ones(1, 4)).tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("backend", ["dense", "csr"])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_products_follow(storage, backend):
    made = layer(storage, backend=backend, keep_expansion=storage == "packed")
    made(torch.ones(1, 4))  # a kept expansion exists before the rewire
    index_map = rewire(made, torch.tensor([3, 4]), torch.tensor([0, 7]))
    made.weight.data.copy_(index_map.move(made.weight.detach().view(-1)).view(made.weight.shape))
    x = torch.arange(4.0).view(1, 4).requires_grad_()
    made(x).backward(torch.ones(1, 2))
    assert x.grad.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    grad = made.index.expand(made.weight.grad) if made.packed else made.weight.grad
    assert grad.tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]]


@pytest.mark.parametrize("storage", STORAGES)
def test_state_that_moves_along_stays_with_its_weight(storage):
    """A random rewire: kept cells keep their state bit for bit, grown ones start at zero."""
    rng = np.random.default_rng(0)
    shape = LayerShape("w", "up", 24, 16)
    mask = rng.random((24, 16)) < 0.3
    graph = LayerTopology("w", 24, 16, np.flatnonzero(mask))
    made = ColumnParallelSparseLinear(shape, graph, options=LinearOptions(storage=storage))
    state = torch.from_numpy(np.where(mask, rng.standard_normal((24, 16)), 0.0)).float()
    flat = state.view(-1)[torch.from_numpy(mask).view(-1)] if made.packed else state.view(-1)
    drop = torch.from_numpy(rng.permutation(np.flatnonzero(mask))[:20])
    grow = torch.from_numpy(rng.permutation(np.flatnonzero(~mask))[:20])
    moved = rewire(made, drop, grow).move(flat)
    wanted = state.clone()
    wanted.view(-1)[drop] = 0.0
    found = made.index.expand(moved) if made.packed else moved.view(24, 16)
    assert torch.equal(found, wanted)
    assert made.topology.num_live == graph.num_live
    assert made.topology.digest != graph.digest


@pytest.mark.parametrize(
    ("drop", "grow", "message"),
    [
        ([1], [0, 2], "equal"),
        ([1, 1], [0, 2], "twice"),
        ([0], [2], "drop names a weight that is absent"),
        ([1], [3], "grow names a weight that is live"),
    ],
)
def test_what_no_rewire_can_be(drop, grow, message):
    made = layer("packed")
    with pytest.raises(ValueError, match=message):
        rewire(made, torch.tensor(drop), torch.tensor(grow))
    assert made.topology.edges.tolist() == EDGES.tolist()


def test_nothing_to_move():
    made = layer("packed")
    none = torch.empty(0, dtype=torch.int64)
    index_map = rewire(made, none, none)
    assert torch.equal(index_map.move(made.weight.detach()), made.weight)
