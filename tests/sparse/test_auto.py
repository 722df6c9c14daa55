"""auto: measured, the smallest median wins, and only what can do the work is tried."""

import pytest
import torch

from sparsecl.sparse import auto
from sparsecl.sparse.auto import candidates, choose
from sparsecl.sparse.backends import LinearOptions
from sparsecl.sparse.linear import RowParallelSparseLinear
from sparsecl.sparse.native import missing
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import BlockConfig, TopologyConfig
from sparsecl.topology.layer import LayerShape

SHAPE = LayerShape("layers.0.mlp.down", "down", 32, 64)
CPU = torch.device("cpu")
BY_ROWS = "csr" if missing() else "native"


def make(options: LinearOptions, block: BlockConfig | None = None) -> RowParallelSparseLinear:
    config = TopologyConfig(density=0.25, block=block)
    graph = build_topologies(config, [SHAPE], seed=0)[SHAPE.name]
    return RowParallelSparseLinear(SHAPE, graph, options=options)


def test_candidates():
    assert candidates(LinearOptions(), CPU) == ["dense", BY_ROWS]
    assert candidates(LinearOptions(block_size=4), CPU) == ["dense", BY_ROWS, "block"]
    assert candidates(LinearOptions(), torch.device("cuda")) == ["dense"]
    assert candidates(LinearOptions(block_size=64), torch.device("cuda")) == ["dense", "block"]


def test_csr_stands_in_where_native_is_not_built(monkeypatch):
    monkeypatch.setattr(auto, "missing", lambda: "it is not built")
    assert candidates(LinearOptions(), CPU) == ["dense", "csr"]


@pytest.mark.parametrize("storage", ["masked", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_candidate_is_timed_on_the_real_layer(storage, dtype):
    options = LinearOptions(storage=storage, block_size=8)
    found = choose(
        lambda o: make(o, BlockConfig(size=8)), options, batch=(2, 5), dtype=dtype, device=CPU
    )
    assert list(found.seconds) == ["dense", BY_ROWS, "block"]
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.seconds[found.backend] == min(found.seconds.values())


def test_the_smallest_median_wins_whatever_the_outliers(monkeypatch):
    times = {"dense": [9, 3, 3, 1, 3, 9], BY_ROWS: [9, 2, 50, 2, 2, 2]}  # the first is warm-up

    class Scripted:
        def __init__(self, layer, *_):
            self.times = iter(times[layer.options.backend])

        def run(self):
            return next(self.times)

    monkeypatch.setattr(auto, "_Trial", Scripted)
    found = choose(make, LinearOptions(), batch=(1, 1), dtype=torch.float32, device=CPU)
    assert (found.backend, dict(found.seconds)) == (BY_ROWS, {"dense": 3, BY_ROWS: 2})
