"""What a run config's topology becomes: slices that fit, and a choice of backends."""

import json

import pytest

from sparsecl import config as configs
from sparsecl import dist
from sparsecl.engine import topology as module
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import make_schedule
from sparsecl.engine.topology import choose_backends, draw_topologies
from sparsecl.errors import UserError
from sparsecl.sparse.auto import Choice

SMALL = (
    "model.preset=null",
    "model.layers=2",
    "model.width=32",
    "model.heads=4",
    "model.context=8",
    "topology.density=0.25",
)


def load(*overrides: str) -> RunConfig:
    return configs.load(RunConfig, None, [*SMALL, *overrides])


@pytest.fixture(autouse=True)
def alone():
    """No process group is needed."""
    dist.shutdown()


@pytest.mark.fault("N7")
def test_a_slice_without_live_weights_is_refused_for_all_ranks():
    block = ("topology.block={size: 16, balanced: false}", "topology.storage=packed")
    assert draw_topologies(load(*block))
    with pytest.raises(UserError, match=r"layers.0.attention.\w has no live weight on tensor-par"):
        draw_topologies(load(*block, "parallel.tensor=4"))


def test_tiles_that_a_split_would_cut_are_refused():
    tiles = ("topology.block={size: 16}", "topology.density=0.5", "parallel.tensor=4")
    assert draw_topologies(load(*tiles))  # the dense backend does not mind
    with pytest.raises(UserError, match="topology.block.size=16 does not divide the 8 features"):
        draw_topologies(load(*tiles, "topology.backend=block"))


def test_auto_measures_each_shape_once_and_remembers(tmp_path, monkeypatch):
    calls = []

    def fake(config, schedule, shape, topology):
        calls.append(shape.kind)
        backend = "csr" if shape.kind in ("up", "down") else "dense"
        return Choice(backend, {"dense": 2.0, "csr": 1.0})

    monkeypatch.setattr(module, "_time", fake)
    config = load("topology.backend=auto", f"data.cache_dir={tmp_path}")
    schedule = make_schedule(config, world_size=1)
    graphs = draw_topologies(config)
    names, lines = choose_backends(config, schedule, graphs, None)
    # q, k and v have one shape; o has it too, but is split the other way.
    assert calls == ["q", "o", "up", "down"]
    assert {name.rsplit(".")[-1]: choice for name, choice in names.items()} == {
        "q": "dense", "k": "dense", "v": "dense", "o": "dense", "up": "csr", "down": "csr",
    }  # fmt: skip
    assert len(lines) == 4 and "32 -> 128 at density 0.25: csr (ms: dense 2000" in lines[2]

    again, lines = choose_backends(config, schedule, graphs, None)
    assert len(calls) == 4 and again == names
    assert all("cached" in line for line in lines)
    other = load("topology.backend=auto", f"data.cache_dir={tmp_path}", "precision=bf16")
    choose_backends(other, schedule, graphs, None)
    assert len(calls) == 8
    (tmp_path / "backends.json").write_text("{")  # a damaged cache is measured again
    choose_backends(config, schedule, graphs, None)
    assert len(calls) == 12
    assert len(json.loads((tmp_path / "backends.json").read_text())) == 4


def test_a_resumed_run_keeps_its_backends(tmp_path):
    config = load("topology.backend=auto", f"data.cache_dir={tmp_path}")
    schedule, graphs = make_schedule(config, world_size=1), draw_topologies(config)
    saved = dict.fromkeys(graphs, "csr")
    assert choose_backends(config, schedule, graphs, saved)[0] == saved
    assert not (tmp_path / "backends.json").exists()


def test_nothing_to_choose():
    for overrides in (["topology.backend=csr"], ["topology.kind=dense", "topology.backend=auto"]):
        config = load(*overrides)
        schedule = make_schedule(config, world_size=1)
        assert choose_backends(config, schedule, draw_topologies(config), None) == ({}, [])


def test_a_layer_too_small_for_a_method_is_refused_before_any_work():
    few = ("topology.density=0.01", "methods.packnet={prune: 0.97}")
    assert draw_topologies(load("methods.packnet={prune: 0.97}"))
    with pytest.raises(UserError, match=r"methods.packnet.prune=0.97: layers.0.attention.q has 10"):
        draw_topologies(load(*few))
