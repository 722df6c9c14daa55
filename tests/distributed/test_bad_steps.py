"""A gradient that is not finite changes nothing anywhere; a flipped bit does not stay unseen."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl import dist, faults, watchdog
from sparsecl.errors import InvariantError
from tests.distributed import cases

pytestmark = pytest.mark.dist

LAYER = "layers.1.mlp.up.weight"
SPLIT = "parallel.tensor=2"


class _Silent:
    def advance(self, shown: Any) -> None: ...


def snapshot(built: Any) -> dict[str, torch.Tensor]:
    """Bits of everything that this rank keeps, the optimizer's numbers included."""
    kept = {}
    for item in built.slices:
        found = {"weight": item.weight, "master": item.master, **built.slices.moments(item)}
        kept |= {f"{name} of {item.name}": value.clone() for name, value in found.items()}
    for key, param_state in enumerate(built.slices.optimizer.state.values()):
        if torch.is_tensor(param_state.get("step")):
            kept[f"step of group {key}"] = param_state["step"].clone()
    return kept


def one_bad_step(
    cache: str, stage: str, spec: str, overrides: tuple[str, ...], folder: str
) -> dict[str, Any]:
    """Steps 1-2, a bad step 3, step 4; what changed in step 3 and in step 4."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    phase = trainer.schedule.phases[0]
    trainer._begin_phase(phase)
    faults.arm([spec], seed=0, rank=dist.rank())
    taken = []
    for _ in range(4):
        before = snapshot(built)
        trainer._step_and_watch(phase, _Silent())
        after = snapshot(built)
        same = before.keys() == after.keys() and all(
            value.view(-1).view(torch.uint8).equal(after[key].view(-1).view(torch.uint8))
            for key, value in before.items()
        )
        taken.append(not same)
    faults.disarm()
    finite = all(bool(torch.isfinite(value).all()) for value in snapshot(built).values())
    records = [r["kind"] for r in trainer.records if r["kind"] in ("train", "discarded")]
    return {"taken": taken, "finite": finite, "records": records}


@pytest.mark.fault("N1", "N3")
@pytest.mark.parametrize(
    ("stage", "spec", "overrides"),
    [
        *((stage, "nan@loss:3/rank=1", ()) for stage in ("zero0", "zero2", "zero3")),
        pytest.param("zero1", "nan@loss:3/rank=1", (), marks=pytest.mark.slow),
        ("zero0", "inf@gradient:3/rank=1", ("precision=bf16",)),
        pytest.param("zero3", "inf@gradient:3/rank=1", ("precision=bf16",), marks=pytest.mark.slow),
        ("zero1", "nan@loss:3/rank=1", ("precision=bf16",)),
        ("zero2", "inf@gradient:3/rank=0", ("precision=bf16", "batch.micro=2")),
        ("zero2_offload", "nan@loss:3/rank=0", ()),
        ("zero0", "nan@gradient:3/rank=1", (SPLIT,)),
        ("zero2", "nan@gradient:3/rank=1", (SPLIT,)),
        ("zero3", "nan@loss:3/rank=1", (SPLIT,)),
    ],
)
def test_a_bad_step_changes_no_bit_on_any_rank(
    pool, shared_cache, tmp_path, stage, spec, overrides
):
    results = pool.run(one_bad_step, 2, str(shared_cache), stage, spec, overrides, str(tmp_path))
    for result in results:
        assert result["taken"] == [True, True, False, True]
        assert result["finite"]
    assert results[0]["records"] == ["train", "train", "discarded", "train"]


def patience_by_step(cache: str, folder: str) -> list[float]:
    """What the watchdog allows after an evaluation, a discarded step and one that was applied."""
    trainer, _, _ = cases.assemble(cases.load(cache, ()), "zero2", folder)
    dog = watchdog.Watchdog(600.0)
    dog.start()
    faults.arm(["nan@loss:1"], seed=0, rank=dist.rank())
    allowed = []
    trainer._evaluate_all("start", phase=-1)
    allowed.append(dog.allowed)
    trainer._begin_phase(trainer.schedule.phases[0])
    for _ in range(2):
        trainer._step_and_watch(trainer.schedule.phases[0], _Silent())
        allowed.append(dog.allowed)
    faults.disarm()
    dog.close()
    return allowed


@pytest.mark.fault("G2")
def test_patience_ends_with_the_first_step_that_is_applied(pool, shared_cache, tmp_path):
    (allowed,) = pool.run(patience_by_step, 1, str(shared_cache), str(tmp_path))
    assert allowed == [6000.0, 6000.0, 600.0]


def bad_steps_in_a_row(cache: str, folder: str) -> str:
    """Every step from the third on is bad on rank 1; the error that ends the run."""
    trainer, _, _ = cases.assemble(cases.load(cache, ()), "zero2", f"{folder}/checkpoints")
    faults.arm(["nan@loss:3-9/rank=1"], seed=0, rank=dist.rank())
    with pytest.raises(InvariantError) as caught:
        trainer.run()
    faults.disarm()
    return str(caught.value)


@pytest.mark.fault("N1")
def test_a_run_of_bad_steps_ends_with_what_each_rank_saw(pool, shared_cache, tmp_path):
    errors = pool.run(bad_steps_in_a_row, 2, str(shared_cache), str(tmp_path))
    assert errors[0] == errors[1]
    assert errors[0].startswith("step 5: 3 steps in a row")
    assert "not finite on rank 1)" in errors[0]
    path = Path(tmp_path) / "diagnostics" / "step_5.json"
    assert "See diagnostics/step_5.json in the run folder." in errors[0]
    told = path.read_text(encoding="utf-8")
    assert '"nan"' in told and '"domain": "a"' in told and LAYER in told


def flip_and_audit(
    cache: str, stage: str, spec: str, overrides: tuple[str, ...], folder: str
) -> str:
    """One bit flips after step 2; the error of the audit that follows."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    faults.arm([spec], seed=3, rank=dist.rank())
    phase = trainer.schedule.phases[0]
    trainer._begin_phase(phase)
    trainer._audit()
    trainer._step_and_watch(phase, _Silent())
    trainer._audit()
    trainer._step_and_watch(phase, _Silent())
    with pytest.raises(InvariantError) as caught:
        trainer._audit()
    faults.disarm()
    return str(caught.value)


@pytest.mark.fault("N6")
@pytest.mark.parametrize(
    "overrides", [(), pytest.param(("precision=bf16",), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("stage", ["zero0", "zero2", "zero3"])
def test_a_flipped_bit_is_found(pool, shared_cache, tmp_path, stage, overrides):
    if stage == "zero3":
        overrides += ("batch.micro=2",)
    spec = "flip=3@weights:2/rank=1"
    dense = ("topology.kind=dense", *overrides)  # any element is live
    errors = pool.run(flip_and_audit, 2, str(shared_cache), stage, spec, dense, str(tmp_path))
    assert errors[0] == errors[1]
    assert "copies that must be equal differ" in errors[0]
    assert "rank 1: " in errors[0]


def unlike_masks(cache: str, storage: str, folder: str) -> str:
    """One rank's topology is another than its partner's."""
    overrides = (f"topology.storage={storage}",)
    trainer, _, built = cases.assemble(cases.load(cache, overrides), "zero2", folder)
    if dist.rank() == 1:
        layer = built.model.get_submodule(LAYER.removesuffix(".weight"))
        name, buffer = next(iter(sorted(layer.named_buffers())))
        flat = buffer.view(-1)
        flat[0] = ~flat[0] if buffer.dtype == torch.bool else flat[0] + 1
    with pytest.raises(InvariantError) as caught:
        trainer._audit()
    return str(caught.value)


@pytest.mark.fault("C8")
@pytest.mark.parametrize("storage", ["masked", "packed"])
def test_unlike_masks_are_found(pool, shared_cache, tmp_path, storage):
    errors = pool.run(unlike_masks, 2, str(shared_cache), storage, str(tmp_path))
    assert errors[0] == errors[1] and LAYER.removesuffix(".weight") in errors[0]
