"""A topology that moves, in real runs: SET under every stage, storage and split."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl.checkpoint.publish import newest_valid
from sparsecl.checkpoint.reader import Reader
from sparsecl.engine.resume import state
from sparsecl.sparse.registry import sparse_parameters
from tests.distributed import cases

pytestmark = pytest.mark.dist

SET = (
    *cases.TWO_DOMAINS,
    "methods.set={every: 4, drop_fraction: 0.3}",
    # The spring of EWC must move with its weight.
    "methods.ewc={strength: 100.0, sequences: 3}",
)


def layout(tp: int, dp: int) -> tuple[str, ...]:
    return (f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")


def checked(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    """A run that looks at every rewire: counts, kept values and states, zeros where it grew."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    rewire, rewires = trainer.context.rewire, []

    def watch(name: str, drop: torch.Tensor, grow: torch.Tensor) -> None:
        before = snapshot(trainer, name)
        grown = rewire(name, drop, grow)
        assert grown.shape == trainer.context.sparse[name].layer.storage_shape
        after = snapshot(trainer, name)
        assert after.keys() == before.keys() and len(after) in (3, 5)
        for key, old in before.items():
            old[~trainer.context.sparse[name].layer.live_mask()] = 0.0  # grown cells were zero
            assert torch.equal(after[key], old), (name, key)
        rewires.append((trainer.step, name, drop.numel()))

    trainer.context.rewire = watch
    trainer.run()
    return {
        "losses": trainer.losses(),
        "rewires": rewires,
        "nonzero": built.guard.nonzero,
    }


def snapshot(trainer: Any, name: str) -> dict[str, torch.Tensor]:
    """Master, moments and springs of one parameter as local matrices. Collective over dp."""
    from sparsecl.optim.moving import whole

    layer = trainer.context.sparse[name].layer
    item = trainer.slices.find(name)
    parts = {"master": item.master, **trainer.slices.moments(item)} if item else {}
    keys = ["master", *trainer.slices.moment_names()]
    for number, tensors in enumerate(trainer.methods.slice_tensors()):
        if trainer.position.phase > 0:
            keys.append(f"spring {number}")
            parts[keys[-1]] = tensors.get(name)
    found = {}
    for key in keys:
        flat = whole(trainer.slices, item, parts.get(key), layer.storage_shape.numel())
        shape = layer.local_shape
        found[key] = layer.index.expand(flat) if layer.packed else flat.view(shape).clone()
    return found


@pytest.fixture(scope="module")
def masked(pool, shared_cache, tmp_path_factory) -> Any:
    """A masked run by (tp, dp): losses and final masters."""
    found = {}

    def run(tp: int, dp: int):
        if (tp, dp) not in found:
            folder = tmp_path_factory.mktemp("masked")
            overrides = (*SET, *layout(tp, dp))
            ranks = pool.run(checked, tp * dp, str(shared_cache), "zero2", overrides, str(folder))
            assert all(rank["nonzero"] == 0 for rank in ranks)
            rewires = ranks[0]["rewires"]
            assert {step for step, *_ in rewires} == {4, 8, 12, 16, 20}
            assert len(rewires) == 5 * 12 and all(num > 0 for *_, num in rewires)
            found[tp, dp] = (ranks[0]["losses"], cases.masters(folder), folder)
        return found[tp, dp]

    return run


@pytest.mark.parametrize(
    ("stage", "tp", "dp"),
    [
        ("zero0", 1, 1),
        ("zero1", 1, 2),
        ("zero2_offload", 1, 2),
        cases.slow("zero3", 1, 2),
    ],
)
def test_set_is_the_same_run_in_both_storages(pool, shared_cache, tmp_path, masked, stage, tp, dp):
    losses, weights, _ = masked(tp, dp)
    overrides = (*SET, *layout(tp, dp), "topology.storage=packed")
    ranks = pool.run(checked, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    assert ranks[0]["losses"] == pytest.approx(losses, abs=1e-5)
    found = cases.masters(tmp_path)
    for name, weight in weights.items():
        assert ((found[name] != 0) == (weight != 0)).all(), name
        assert found[name].sub(weight).abs().max() < 1e-5, name


def test_the_graph_does_not_depend_on_the_tensor_parallel_size(masked):
    losses, weights, folder = masked(1, 2)
    other_losses, other_weights, other = masked(2, 1)
    assert other_losses == pytest.approx(losses, abs=1e-5)
    mine, theirs = (Reader(newest_valid(path)[0]).topologies for path in (folder, other))
    for name, graph in mine.items():
        assert theirs[name].digest == graph.digest, name
        assert other_weights[name].sub(weights[name]).abs().max() < 1e-5, name


def go_on(cache: str, stage: str, overrides: tuple[str, ...], folder: str, out: str) -> Any:
    """Go on after step 10 from a checkpoint whose topology is not the config's."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, out)
    first = {name: entry.topology.digest for name, entry in trainer.context.sparse.items()}
    trainer.take_up(Path(folder) / "step_10")
    now = {name: entry.topology.digest for name, entry in trainer.context.sparse.items()}
    assert all(now[name] != digest for name, digest in first.items())
    built.guard.audit(trainer.step)
    trainer.run()
    return trainer.losses()


@pytest.mark.parametrize("storage", ["masked", "packed"])
def test_a_rewired_run_goes_on(pool, shared_cache, tmp_path, masked, storage):
    losses, _, folder = masked(1, 2)
    overrides = (*SET, *layout(1, 2), f"topology.storage={storage}")
    resumed = pool.run(go_on, 2, str(shared_cache), "zero2", overrides, str(folder), str(tmp_path))[
        0
    ]
    assert resumed == pytest.approx(losses[10:], abs=1e-6 if storage == "packed" else 0)
    reader = Reader(newest_valid(tmp_path)[0])
    for name, graph in reader.topologies.items():
        absent = torch.from_numpy(~graph.mask())
        assert (reader.read("master", name)[absent] == 0).all()


def refused(cache: str, overrides: tuple[str, ...], folder: str, out: str) -> str:
    trainer, _, built = cases.assemble(cases.load(cache, overrides), "zero2", out)
    before = sparse_parameters(built.engine.module)["layers.0.mlp.up.weight"].topology.digest
    try:
        state.restore(Path(folder) / "step_10", built, trainer.methods)
    except Exception as error:
        return f"{error} (config gives {before[:12]})"
    return "no error"


def test_a_fixed_run_refuses_a_rewired_checkpoint(pool, shared_cache, tmp_path, masked):
    *_, folder = masked(1, 2)
    overrides = (*cases.TWO_DOMAINS, *layout(1, 2))
    found = pool.run(refused, 2, str(shared_cache), overrides, str(folder), str(tmp_path))
    assert "topology digest of layers.0.attention.q" in found[0]
