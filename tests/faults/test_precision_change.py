"""A run goes on in another precision: the masters are kept, a loss scale is not carried over."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl.checkpoint.publish import newest_valid
from sparsecl.checkpoint.reader import Reader
from tests.distributed import cases
from tests.faults import fp16

pytestmark = pytest.mark.dist

POWER = 8  # a run of its own begins at the scale 256


def assemble(cache: str, stage: str, precision: str, folder: str) -> tuple[Any, Any]:
    json = fp16.scaling(POWER) if precision == "fp16" else None
    config = cases.load(cache, (f"precision={precision}", "phases.steps=8"))
    trainer, _, built = cases.assemble(config, stage, folder, json)
    return trainer, built


def begin(cache: str, stage: str, precision: str, folder: str) -> float:
    """Four steps and a checkpoint; the loss scale there."""
    with fp16.allowed():
        trainer, built = assemble(cache, stage, precision, folder)
        for _ in range(4):
            trainer._train_step(3e-3, audited=False, logged=False)
            trainer.position.step += 1
            trainer.position.phase_step += 1
        if precision == "fp16":
            built.slices.wrapper.scaler.cur_scale /= 2  # as after an overflow
        trainer._save()
        return built.slices.loss_scale


def go_on(cache: str, stage: str, precision: str, folder: str) -> dict[str, Any]:
    """Restore, save again elsewhere, and train to the end."""
    with fp16.allowed():
        trainer, built = assemble(cache, stage, precision, folder)
        found, _ = newest_valid(Path(folder))
        assert found is not None
        trainer.take_up(found)
        scale = built.slices.loss_scale
        trainer.keeper.saver.root = Path(folder) / "again"
        trainer._save()
        trainer.run()
        built.guard.audit(trainer.step)
    return {"scale": scale, "losses": trainer.losses()}


@pytest.mark.fault("C12")
@pytest.mark.parametrize(
    ("before", "after", "scale"),
    [
        (("zero2", "fp32"), ("zero2", "bf16"), 1.0),
        (("zero2", "fp16"), ("zero1", "bf16"), 1.0),
        (("zero0", "fp16"), ("zero0", "bf16"), 1.0),
        (("zero1", "bf16"), ("zero2", "fp16"), 2.0**POWER),
        # The same precision goes on with the scale that it had, in another stage too.
        (("zero2", "fp16"), ("zero3", "fp16"), 2.0 ** (POWER - 1)),
        (("zero0", "fp16"), ("zero2", "fp16"), 2.0 ** (POWER - 1)),
    ],
)
def test_masters_stay_and_the_scale_is_that_of_the_new_run(
    pool, shared_cache, tmp_path, before, after, scale
):
    cache, folder = str(shared_cache), str(tmp_path)
    (old_scale,) = pool.run(begin, 1, cache, *before, folder)
    assert old_scale == (2.0 ** (POWER - 1) if before[1] == "fp16" else 1.0)
    (found,) = pool.run(go_on, 1, cache, *after, folder)
    assert found["scale"] == scale
    assert len(found["losses"]) == 4 and all(math.isfinite(loss) for loss in found["losses"])
    assert found["losses"][-1] < math.log(257)
    one, other = Reader(tmp_path / "step_4"), Reader(tmp_path / "again" / "step_4")
    assert one.states() == other.states()
    for key in one.states():
        for name in one.manifest.parameters:
            assert torch.equal(one.read(key, name), other.read(key, name)), (key, name)
