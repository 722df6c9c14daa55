"""A method may leave out the update of a step: nothing changes, and it is no bad step."""

from typing import Any

import pytest

from sparsecl.methods.base import Method
from tests.distributed import cases
from tests.distributed.test_bad_steps import _Silent, snapshot

pytestmark = pytest.mark.dist


class Skipper(Method):
    """Skips the first and the third step."""

    name = "skipper"

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[bool, bool]] = []

    def after_backward(self, context) -> None:
        if context.progress.step in (0, 2):
            context.skip_update()

    def after_step(self, context, *, applied: bool) -> None:
        self.told.append((applied, context.update_skipped))


def some_steps(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> dict[str, Any]:
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    skipper = Skipper()
    trainer.methods.methods.append(skipper)
    phase = trainer.schedule.phases[0]
    trainer._begin_phase(phase)
    changed = []
    for _ in range(4):
        before = snapshot(built)
        trainer._step_and_watch(phase, _Silent())
        after = snapshot(built)
        changed.append(any(not value.equal(after[key]) for key, value in before.items()))
    item = next(iter(built.slices))
    return {
        "changed": changed,
        "told": skipper.told,
        "records": [r["kind"] for r in trainer.records if r["kind"] in ("train", "discarded")],
        "counters": (built.engine.global_steps, built.engine.skipped_steps),
        "updates": built.slices.num_updates(item),
        "bad_steps": trainer.health.kept.bad_steps,
    }


@pytest.mark.parametrize(
    ("stage", "extra"),
    [
        ("zero0", ()),
        ("zero1", ("precision=bf16",)),
        ("zero2", ()),
        ("zero3", ("precision=bf16",)),
        cases.slow("zero0", ("precision=bf16",)),
        cases.slow("zero2_offload", ()),
        cases.slow("zero3", ()),
    ],
)
def test_a_skipped_update_changes_no_bit(pool, shared_cache, tmp_path, stage, extra):
    for rank in pool.run(some_steps, 2, str(shared_cache), stage, extra, str(tmp_path)):
        assert rank["changed"] == [False, True, False, True]
        assert rank["told"] == [(False, True), (True, False), (False, True), (True, False)]
        assert rank["records"] == ["train"] * 4 and rank["bad_steps"] == 0
        assert rank["counters"] == (4, 2) and rank["updates"] == 2
