"""A checkpoint puts back everything: bit for bit on its own layout, equal tensors on others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl.checkpoint.publish import newest_valid
from sparsecl.checkpoint.reader import Reader
from sparsecl.engine.resume import state
from sparsecl.errors import DataError
from tests.distributed import cases

pytestmark = pytest.mark.dist

SPLIT = ("parallel.tensor=2", "batch.micro=2")


def train_part(
    cache: str, stage: str, overrides: tuple[str, ...], folder: str, stop: int
) -> list[float]:
    """Train to step `stop` of the whole run, save, and leave."""
    trainer, _, _ = cases.assemble(cases.load(cache, overrides), stage, folder)
    trainer.position.started = True
    while trainer.position.step < stop:
        phase = trainer.schedule.phases[trainer.position.phase]
        if trainer.position.phase_step == 0:
            trainer._begin_phase(phase)
        progress = _Silent()
        trainer._step_and_watch(phase, progress)
        if trainer.position.phase_step == phase.num_steps:
            trainer._end_phase(phase)
    trainer._save()
    return trainer.losses()


class _Silent:
    def advance(self, shown: Any) -> None: ...


def go_on(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    """Restore the newest checkpoint, save it again as another one, and train to the end."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    found, _ = newest_valid(Path(folder))
    assert found is not None
    trainer.take_up(found)
    built.guard.audit(trainer.step)
    trainer.keeper.saver.root = Path(folder) / "again"
    trainer._save()
    trainer.keeper.saver.root = Path(folder)
    trainer.run()
    return {"losses": trainer.losses(), "from": found.name}


def states(folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    reader = Reader(folder)
    return {
        (key, name): reader.read(key, name)
        for key in reader.states()
        for name in reader.manifest.parameters
    }


def assert_equal_states(one: Path, other: Path) -> None:
    first, second = states(one), states(other)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize(
    ("stage", "precision", "tp", "dp"),
    [
        cases.slow("zero0", "fp32", 1, 2),
        cases.slow("zero1", "fp32", 1, 2),
        cases.slow("zero2", "fp32", 2, 2),
        cases.slow("zero2_offload", "fp32", 2, 1),
        ("zero3", "fp32", 1, 2),
        # Where bf16 has other wrappers or other copies than fp32.
        cases.slow("zero0", "bf16", 2, 1),
        ("zero1", "bf16", 1, 2),
        cases.slow("zero3", "bf16", 1, 2),
    ],
)
def test_same_layout_goes_on_bit_for_bit(pool, shared_cache, tmp_path, stage, precision, tp, dp):
    overrides = (*cases.EWC, f"parallel.tensor={tp}", "batch.micro=2", f"precision={precision}")
    cache, world = str(shared_cache), tp * dp
    whole = pool.run(cases.train, world, cache, stage, overrides, str(tmp_path / "whole"))[0]
    folder = tmp_path / "parts"
    first = pool.run(train_part, world, cache, stage, overrides, str(folder), 13)[0]
    second = pool.run(go_on, world, cache, stage, overrides, str(folder))[0]
    assert second["from"] == "step_13"
    assert first + second["losses"] == whole["losses"]
    assert_equal_states(folder / "step_13", folder / "again" / "step_13")
    assert_equal_states(tmp_path / "whole" / "step_20", folder / "step_20")


@pytest.mark.fault("C9", "C10")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("zero0", 1, ()), ("zero3", 4, SPLIT)),
        cases.slow(("zero3", 4, SPLIT), ("zero2", 2, ())),
        (("zero1", 2, ("batch.micro=1",)), ("zero0", 4, SPLIT)),
        cases.slow(("zero2", 4, ("parallel.tensor=4",)), ("zero1", 1, ())),
    ],
)
def test_other_layouts_get_the_same_tensors(pool, shared_cache, tmp_path, before, after):
    cache = str(shared_cache)
    whole = pool.run(cases.train, 1, cache, "zero0", cases.EWC, str(tmp_path / "whole"))[0]
    (stage, world, overrides), (next_stage, next_world, next_overrides) = before, after
    folder = tmp_path / "parts"
    pool.run(train_part, world, cache, stage, (*cases.EWC, *overrides), str(folder), 13)
    second = pool.run(
        go_on, next_world, cache, next_stage, (*cases.EWC, *next_overrides), str(folder)
    )[0]
    assert_equal_states(folder / "step_13", folder / "again" / "step_13")
    assert second["losses"] == pytest.approx(whole["losses"][13:], abs=1e-5)


def restore_wrong(cache: str, overrides: tuple[str, ...], folder: str) -> str:
    trainer, _, built = cases.assemble(cases.load(cache, overrides), "zero2", folder)
    found, _ = newest_valid(Path(folder))
    assert found is not None
    with pytest.raises(DataError) as caught:
        state.restore(found, built, trainer.methods)
    return str(caught.value)


def test_another_model_is_refused(pool, shared_cache, tmp_path):
    pool.run(train_part, 1, str(shared_cache), "zero2", (), str(tmp_path), 1)
    for message in pool.run(
        restore_wrong, 2, str(shared_cache), ("model.layers=3",), str(tmp_path)
    ):
        assert "its parameters are not those of this model config" in message
