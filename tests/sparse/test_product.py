"""Every storage with every backend is the same linear map: x (W * M)^T and its gradients."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sparsecl import config as configs
from sparsecl.errors import UserError
from sparsecl.sparse.backends import LinearOptions
from sparsecl.sparse.linear import ColumnParallelSparseLinear, RowParallelSparseLinear
from sparsecl.sparse.native import missing
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerShape, LayerTopology

SHAPE = LayerShape("layers.0.mlp.up", "up", 32, 16)
# One of every family, with options that fit 32 x 16 and a split in four.
KINDS = {
    "er_fixed": ["kind=er_fixed"],
    "er_bernoulli": ["kind=er_bernoulli"],
    "brf": ["kind=brf"],
    "shared_index": ["kind=shared_index"],
    "bsw": ["kind=bsw"],
    "expander": ["kind=expander"],
    "nm": ["kind=nm", "nm.m=4"],
    "block_diag": ["kind=block_diag"],
    "er_block": ["kind=er_fixed", "block={size: 4}", "density=0.5"],
    "brf_block": ["kind=brf", "block={size: 4}"],
    "bsw_block": ["kind=bsw", "block={size: 4}"],
    "expander_block": ["kind=expander", "block={size: 4}"],
    "all_live": ["kind=er_fixed", "density=1.0"],
}
BACKENDS = ("dense", *(() if missing() else ("native",)), "csr", "block")
SPLITS = {0: ColumnParallelSparseLinear, 1: RowParallelSparseLinear}


def topology(kind: str) -> LayerTopology:
    config = configs.load(TopologyConfig, None, ["density=0.25", *KINDS[kind]])
    return build_topologies(config, [SHAPE], seed=0)[SHAPE.name]


def reference(mask: np.ndarray):
    """x, dy, W (zero where absent) and the float64 results y, dx, dW."""
    rng = torch.Generator().manual_seed(0)
    rows, columns = mask.shape
    x = torch.randn(2, 5, columns, generator=rng, dtype=torch.float64)
    dy = torch.randn(2, 5, rows, generator=rng, dtype=torch.float64)
    live = torch.from_numpy(mask)
    weight = torch.randn(rows, columns, generator=rng, dtype=torch.float64) * live
    y = x @ weight.T
    dw = dy.flatten(0, 1).T @ x.flatten(0, 1) * live
    return x, dy, weight, y, dy @ weight, dw


def check(layers, split, mask, tolerance=1e-5):
    """The slices of all tp ranks together against the whole matrix."""
    x, dy, weight, y, dx, dw = reference(mask)
    parts = weight.float().chunk(len(layers), split)
    found_y, found_dx, found_dw = [], [], []
    for rank, (layer, part) in enumerate(zip(layers, parts, strict=True)):
        layer.fill(part.clone())
        assert torch.equal(layer.matrix(), part)
        mine = x.float() if split == 0 else x.float().chunk(len(layers), -1)[rank]
        mine = mine.clone().requires_grad_()
        out = layer(mine)  # one process: a row-parallel slice gives its partial sum
        given = dy.float().chunk(len(layers), -1)[rank] if split == 0 else dy.float()
        out.backward(given)
        found_y.append(out.detach())
        found_dx.append(mine.grad)
        grad = layer.weight.grad
        found_dw.append(layer.index.expand(grad) if layer.packed else grad)
    join, add = (lambda t: torch.cat(t, -1)), (lambda t: torch.stack(t).sum(0))
    for name, found, wanted in (
        ("y", (join if split == 0 else add)(found_y), y),
        ("dx", (add if split == 0 else join)(found_dx), dx),
        ("dW", torch.cat(found_dw, split), dw),
    ):
        assert found.double().sub(wanted).abs().max() < tolerance, name
    assert (torch.cat(found_dw, split)[~torch.from_numpy(mask)] == 0).all()


@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("split", [0, 1], ids=["column", "row"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_agrees_with_the_masked_product(kind, split, tp_size):
    graph = topology(kind)
    for storage, backend, keep in itertools.product(("masked", "packed"), BACKENDS, (False, True)):
        if keep and (storage, backend) != ("packed", "dense"):
            continue
        options = LinearOptions(storage=storage, backend=backend, keep_expansion=keep, block_size=4)

        def make(options=options):
            return [
                SPLITS[split](SHAPE, graph, tp_rank=rank, tp_size=tp_size, options=options)
                for rank in range(tp_size)
            ]

        if backend == "block" and not _is_tiled(graph.mask(), 4):
            with pytest.raises(UserError, match="topology.backend=block: layers.0.mlp.up"):
                make()
            continue
        check(make(), split, graph.mask())


@settings(max_examples=60)
@given(
    rows=st.integers(1, 13),
    columns=st.integers(1, 13),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),  # 0: one live weight, all other rows empty
    storage=st.sampled_from(["masked", "packed"]),
    backend=st.sampled_from(BACKENDS),
    seed=st.integers(0, 9),
)
def test_any_shape_and_any_mask(rows, columns, density, storage, backend, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, columns)) < density
    mask[rng.integers(rows), rng.integers(columns)] = True
    graph = LayerTopology.from_mask("w", mask)
    options = LinearOptions(storage=storage, backend=backend, block_size=1)
    layer = ColumnParallelSparseLinear(LayerShape("w", "up", rows, columns), graph, options=options)
    check([layer], 0, mask)


@pytest.mark.parametrize("split", SPLITS)
def test_a_side_that_tp_does_not_divide_is_refused(split):
    shape = LayerShape("w", "up", 7, 5)
    with pytest.raises(AssertionError, match="w"):
        SPLITS[split](shape, None, tp_rank=0, tp_size=2)


def _is_tiled(mask: np.ndarray, size: int) -> bool:
    tiles = mask.reshape(mask.shape[0] // size, size, mask.shape[1] // size, size)
    return bool((tiles.all((1, 3)) == tiles.any((1, 3))).all())


class Probe(TorchDispatchMode):
    """The largest storage that any operation returns, in elements of 4 bytes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize(
    ("backend", "expands"), [(name, name == "dense") for name in BACKENDS[:-1]]
)
def test_rows_build_nothing_of_dense_size(backend, expands):
    shape = LayerShape("w", "up", 384, 256)  # larger than the tile of 64 tokens that native has
    graph = build_topologies(TopologyConfig(density=0.05), [shape], seed=0)["w"]
    options = LinearOptions(storage="packed", backend=backend)
    layer = ColumnParallelSparseLinear(shape, graph, options=options)
    layer.weight.data.normal_()
    x = torch.randn(3, 256, requires_grad=True)
    with Probe() as probe:
        layer(x).sum().backward()
    assert probe.largest > 0
    assert (probe.largest >= 384 * 256) == expands


def test_feature_major_activations_are_taken_as_they_are():
    graph = topology("er_fixed")
    layer = ColumnParallelSparseLinear(
        SHAPE, graph, options=LinearOptions(storage="packed", backend="csr")
    )
    layer.weight.data.normal_()
    rows = torch.randn(2, 5, 16)
    columns = layer.arrange(rows.clone().requires_grad_())
    assert columns.flatten(0, 1).t().is_contiguous()
    assert torch.equal(columns, rows)
    assert torch.equal(layer(columns), layer(rows))
    # What comes back has the strides of what went in.
    a, b = rows.clone().requires_grad_(), rows.clone().requires_grad_()
    layer(layer.arrange(a)).square().sum().backward()
    layer(b).square().sum().backward()
    assert torch.equal(a.grad, b.grad)
    assert a.grad.is_contiguous() and b.grad.is_contiguous()


def test_a_kept_expansion_follows_its_values_once_told():
    graph = topology("er_fixed")
    options = LinearOptions(storage="packed", keep_expansion=True)
    layer = ColumnParallelSparseLinear(SHAPE, graph, options=options)
    layer.fill(torch.from_numpy(graph.mask()).float())
    x = torch.ones(1, 16)
    before = layer(x).clone()
    layer.weight.data.mul_(2.0)
    assert torch.equal(layer(x), before)  # kept over the micro-batches of a step
    layer.forget()
    assert torch.equal(layer(x), 2 * before)
    assert layer.backend.count_absent() == 0
    layer.backend.kept[~torch.from_numpy(graph.mask())] = 1.0
    assert layer.backend.count_absent() == 32 * 16 - graph.num_live


def test_a_packed_slice_needs_a_live_weight():
    graph = LayerTopology(SHAPE.name, 32, 16, np.array([0], dtype=np.int64))
    with pytest.raises(UserError, match="no live weight on tensor-parallel rank 1 of 2"):
        ColumnParallelSparseLinear(
            SHAPE, graph, tp_rank=1, tp_size=2, options=LinearOptions(storage="packed")
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_all_live_is_bit_identical_to_a_dense_layer(dtype):
    graph = topology("all_live")
    dense = ColumnParallelSparseLinear(SHAPE, None)
    packed = ColumnParallelSparseLinear(SHAPE, graph, options=LinearOptions(storage="packed"))
    matrix = torch.randn(32, 16)
    results = []
    for layer in (dense, packed):
        layer.fill(matrix)
        layer.to(dtype)
        x = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
        x.requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append((y, x.grad, layer.weight.grad.view(32, 16)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
