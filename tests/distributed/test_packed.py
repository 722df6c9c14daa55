"""Packed storage is the masked run: same losses, same weights, nothing of dense size anywhere."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl.checkpoint.publish import newest_valid
from sparsecl.checkpoint.reader import Reader
from sparsecl.engine.resume import state
from sparsecl.sparse.registry import sparse_parameters
from tests.distributed import cases
from tests.distributed.pool import Pool

pytestmark = pytest.mark.dist

PACKED = "topology.storage=packed"
STAGES = ["zero0", "zero1", "zero2", "zero2_offload", "zero3"]


def split(tp: int, dp: int) -> tuple[str, ...]:
    return (f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")


@pytest.fixture(scope="module")
def masked(pool: Pool, shared_cache: Path, tmp_path_factory) -> Any:
    """Losses, norms and weights of masked runs, by layout and precision; each trained once."""
    found = {}

    def run(tp: int, dp: int, stage: str, precision: str):
        key = (tp, dp, stage, precision)
        if key not in found:
            folder = tmp_path_factory.mktemp("masked")
            overrides = (*split(tp, dp), f"precision={precision}")
            result = pool.run(
                cases.train, tp * dp, str(shared_cache), stage, overrides, str(folder)
            )[0]
            found[key] = (result["losses"], result["norms"], cases.masters(folder), folder)
        return found[key]

    return run


KEPT, CSR = "topology.keep_expansion=true", "topology.backend=csr"
NATIVE = "topology.backend=native"
CASES = [
    *((stage, 1, 2, None) for stage in ("zero2", "zero3")),
    *(cases.slow(stage, 1, 2, None) for stage in STAGES if stage not in ("zero2", "zero3")),
    ("zero2", 2, 1, None),
    # Four ranks, where the two splits meet: on two cores they wait for each other.
    *(cases.slow(stage, 2, 2, None) for stage in ("zero2", "zero3")),
    ("zero2", 1, 2, KEPT),
    cases.slow("zero3", 1, 2, KEPT),
    cases.slow("zero2", 1, 2, CSR),
    cases.slow("zero3", 1, 2, CSR),
    *(cases.slow(stage, 1, 2, NATIVE) for stage in ("zero0", "zero2")),
    ("zero3", 1, 2, NATIVE),
]


@pytest.mark.parametrize(("stage", "tp", "dp", "option"), CASES)
def test_packed_equals_masked(pool, shared_cache, tmp_path, masked, stage, tp, dp, option):
    losses, norms, weights, _ = masked(tp, dp, stage, "fp32")
    overrides = (*split(tp, dp), PACKED, *([option] if option else []))
    results = pool.run(cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    for result in results:
        assert result["losses"] == pytest.approx(losses, abs=1e-6)
        assert result["norms"] == pytest.approx(norms, abs=1e-5)
        assert result["audit"] == (4, 0)
    found = cases.masters(tmp_path)
    for name, weight in weights.items():
        assert found[name].sub(weight).abs().max() < 1e-5, name


@pytest.mark.parametrize("stage", ["zero0", cases.slow("zero3")])
def test_packed_equals_masked_in_bf16(pool, shared_cache, tmp_path, masked, stage):
    losses, _, weights, _ = masked(2, 2, stage, "bf16")
    overrides = (*split(2, 2), "precision=bf16", PACKED)
    result = pool.run(cases.train, 4, str(shared_cache), stage, overrides, str(tmp_path))[0]
    assert result["losses"] == losses
    found = cases.masters(tmp_path)
    for name, weight in weights.items():
        assert torch.equal(found[name].bfloat16(), weight.bfloat16()), name


# ---- what is kept -------------------------------------------------------------------------------


def tensors() -> dict[int, torch.Tensor]:
    """All tensors of this process, by identity."""
    gc.collect()
    return {id(thing): thing for thing in gc.get_objects() if type(thing) is torch.Tensor} | {
        id(thing): thing for thing in gc.get_objects() if type(thing) is torch.nn.Parameter
    }


def sizes(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    """Train two steps; every tensor that is left, and what DeepSpeed's optimizer holds."""
    others = tensors()  # of cases that this process has run before
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    gradients: dict[str, int] = {}
    audit = built.guard.audit_gradients

    def spy() -> None:  # gradients exist between backward and step only
        for item in built.slices:
            gradient = built.slices.grad(item)
            gradients[item.name] = 0 if gradient is None else gradient.numel()
        audit()

    built.guard.audit_gradients = spy
    trainer.run()
    sparse = sparse_parameters(built.engine.module)
    layers = [entry.layer for entry in sparse.values()]
    flats = {id(item.stepped): item.stepped for item in built.slices}
    kept = [tensor for key, tensor in tensors().items() if key not in others]
    return {
        "live": {name: entry.layer.index.num_live for name, entry in sparse.items()},
        "slices": {item.name: item.numel for item in built.slices},
        "gradients": gradients,
        "stepped": sum(flat.numel() for flat in flats.values()),
        "moments": [
            sum(t.numel() for t in state.values() if torch.is_tensor(t) and t.dim())
            for state in built.slices.optimizer.state.values()
        ],
        # Sums over layers that flat buffers could hide in are larger still.
        "dense": sorted({t.numel() for t in kept} & {one.local_shape.numel() for one in layers}),
        "masks": [t.numel() for t in kept if t.dtype is torch.bool and t.numel() > 64],
    }


# No other tensor of this model is as large as one of its matrices by chance.
ODD = ("model.context=12", "model.mlp_ratio=5", "phases.steps=2", "audit.every=1")


@pytest.mark.parametrize("stage", ["zero0", cases.slow("zero2"), "zero3"])
def test_deepspeed_holds_live_weights_only(pool, shared_cache, tmp_path, stage):
    overrides = (*ODD, *split(2, 2), PACKED)
    ranks = pool.run(sizes, 4, str(shared_cache), stage, overrides, str(tmp_path))
    for tp_rank in (0, 1):
        copies = ranks[tp_rank::2]  # the dp ranks of one tp slice
        live = copies[0]["live"]
        assert all(copy["live"] == live for copy in copies)
        for name, count in live.items():
            held = sum(copy["slices"].get(name, 0) for copy in copies)
            assert held == (2 * count if stage == "zero0" else count), name
        for copy in copies:
            assert copy["gradients"] == copy["slices"]
            # Flat buffers and their two moments: what the slices say, and a few cells of padding.
            total = sum(copy["slices"].values())
            assert total <= copy["stepped"] <= total + 64
            assert sum(copy["moments"]) == 2 * copy["stepped"]
            assert not copy["dense"] and not copy["masks"]


@pytest.mark.fault("C7")
def test_a_checkpoint_holds_live_weights_only(masked, pool, shared_cache, tmp_path):
    """And it is the same one for both storages, but for the last bits of the values."""
    *_, folder = masked(2, 2, "zero2", "fp32")
    pool.run(cases.train, 4, str(shared_cache), "zero2", (*split(2, 2), PACKED), str(tmp_path))
    readers = [Reader(newest_valid(Path(f))[0]) for f in (folder, tmp_path)]
    entries = [reader.manifest.parameters for reader in readers]
    assert entries[0] == entries[1]
    live = {name: entry for name, entry in entries[1].items() if entry.live}
    assert len(live) == 12
    for name, entry in live.items():
        graphs = [reader.topologies[name] for reader in readers]
        assert graphs[0].digest == graphs[1].digest
        assert graphs[0].num_live == entry.shape[0] * entry.shape[1] // 4
        for reader in readers:
            for kind in ("master", "exp_avg", "exp_avg_sq"):
                pieces = [p for p in reader.manifest.pieces if (p.state, p.name) == (kind, name)]
                assert sum(piece.numel for piece in pieces) == graphs[0].num_live


def go_on(cache: str, stage: str, overrides: tuple[str, ...], folder: str, out: str) -> list[float]:
    """Train from the newest checkpoint of `folder`, which another storage or layout wrote."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, out)
    found, _ = newest_valid(Path(folder))
    assert found is not None
    state.restore(found, built, trainer.methods)
    trainer.position.started = True
    trainer.run()
    return trainer.losses()


@pytest.mark.parametrize(
    ("stage", "layout"),
    [("zero1", (1, 1)), cases.slow("zero3", (2, 1))],
)
def test_each_storage_loads_the_other(pool, shared_cache, tmp_path, masked, stage, layout):
    *_, folder = masked(2, 2, "zero2", "fp32")
    kept = (PACKED, "topology.keep_expansion=true")
    runs = [
        pool.run(
            go_on,
            layout[0] * layout[1],
            str(shared_cache),
            stage,
            (*split(*layout), *storage),
            str(folder),
            str(tmp_path / str(number)),
        )[0]
        for number, storage in enumerate([(), (PACKED,), kept])
    ]
    assert runs[1] == pytest.approx(runs[0], abs=1e-6)
    assert runs[2] == runs[1]
    # And back: a masked run from what a packed run wrote.
    back = pool.run(
        go_on, 1, str(shared_cache), "zero0", split(1, 1), str(tmp_path / "1"), str(tmp_path / "b")
    )[0]
    forth = pool.run(
        go_on, 1, str(shared_cache), "zero0", split(1, 1), str(tmp_path / "0"), str(tmp_path / "c")
    )[0]
    assert back == pytest.approx(forth, abs=1e-5)


def spoiled_expansion(cache: str, overrides: tuple[str, ...], folder: str) -> str:
    """Write into an absent cell of a kept matrix; what the next audit says."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), "zero2", folder)
    layer = sparse_parameters(built.engine.module)["layers.1.mlp.up.weight"].layer
    backward = trainer.context.after_backward

    def spoil() -> None:
        if trainer.step == 7:
            layer.backend.kept.view(-1)[(~layer.live_mask()).view(-1).nonzero()[0]] = 1.0
        backward()

    trainer.context.after_backward = spoil
    try:
        trainer.run()
    except Exception as error:
        return str(error)
    return "no error"


def test_the_audit_sees_a_spoiled_expansion(pool, shared_cache, tmp_path):
    overrides = (*split(1, 2), PACKED, "topology.keep_expansion=true")
    found = pool.run(spoiled_expansion, 2, str(shared_cache), overrides, str(tmp_path))
    assert "audit at step 10" in found[0]
    assert "layers.1.mlp.up.weight (expansion): 1" in found[0]
