"""A stage begins once, whatever lies at its border: a resume, a rollback, a discarded step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sparsecl import dist, faults
from sparsecl.methods.base import Method
from sparsecl.methods.context import MethodContext
from sparsecl.methods.several import Methods
from tests.distributed import cases

pytestmark = pytest.mark.dist

# Stages of each phase: steps 0..5 and 6..9.
STAGED = (
    *cases.TWO_DOMAINS,
    "phases.stages=[{name: x, share: 0.6}, {name: y, share: 0.4}]",
    "checkpoint={every: 3, keep: 9}",
)
ALL = [[0, 0, "x"], [0, 6, "y"], [1, 0, "x"], [1, 6, "y"]]


class Probe(Method):
    """Its state is the list of the stages that have begun."""

    name = "probe"

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Any] = []

    def phase_start(self, context: MethodContext) -> None:
        assert [context.progress.phase, 0, "x"] not in self.begun  # before its first stage

    def stage_start(self, context: MethodContext) -> None:
        progress = context.progress
        assert progress.stage_step == 0
        self.begun.append([progress.phase, progress.phase_step, progress.stage])

    def state_dict(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return {}, {"begun": list(self.begun)}

    def load_state_dict(self, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self.begun = list(values["begun"])


def probed(cache: str, folder: str) -> tuple[Any, Probe]:
    trainer, _, _ = cases.assemble(cases.load(cache, STAGED), "zero2", folder)
    probe = Probe()
    trainer.context.methods = Methods([probe])
    return trainer, probe


def whole(cache: str, folder: str) -> Any:
    trainer, probe = probed(cache, folder)
    trainer.run()
    return probe.begun


def from_step(cache: str, folder: str, out: str, step: int) -> Any:
    """The stages that had begun in a checkpoint, and at the end of the run that goes on from it."""
    trainer, probe = probed(cache, out)
    trainer.take_up(Path(folder) / f"step_{step}")
    before = list(probe.begun)
    trainer.run()
    return before, probe.begun


def rolled_back(cache: str, folder: str, at: int) -> Any:
    """Back to the last checkpoint once, after step `at`; the stages that had begun there, and at
    the end of the run."""
    trainer, probe = probed(cache, folder)
    seen = trainer.run_with_rollback(at, lambda: (trainer.position.phase_step, list(probe.begun)))
    return seen[0], probe.begun


def discarded(cache: str, folder: str) -> Any:
    """The first step of the second stage is not taken."""
    trainer, probe = probed(cache, folder)
    faults.arm(["nan@loss:7"], seed=0, rank=dist.rank())
    trainer.run()
    faults.disarm()
    return probe.begun


def test_every_stage_begins_once_and_after_its_phase(pool, shared_cache, tmp_path):
    assert pool.run(whole, 1, str(shared_cache), str(tmp_path))[0] == ALL
    # Saved exactly at a border, in the middle of a stage, and at the end of a phase.
    for step, had_begun in ((6, 1), (9, 2), (10, 2), (16, 3)):
        out = str(tmp_path / str(step))
        before, end = pool.run(from_step, 1, str(shared_cache), str(tmp_path), out, step)[0]
        assert before == ALL[:had_begun] and end == ALL


@pytest.mark.parametrize(
    ("at", "back", "had_begun"),
    [(8, 6, 1), cases.slow(5, 3, 1), cases.slow(18, 6, 3), cases.slow(12, 0, 2)],
)
def test_a_rollback_begins_stages_again(pool, shared_cache, tmp_path, at, back, had_begun):
    """To the middle of a stage, to its border, and to the border of a phase."""
    place, end = pool.run(rolled_back, 1, str(shared_cache), str(tmp_path), at)[0]
    assert place == (back, ALL[:had_begun]) and end == ALL


def test_a_stage_begins_with_a_step_that_is_discarded(pool, shared_cache, tmp_path):
    assert pool.run(discarded, 1, str(shared_cache), str(tmp_path))[0] == ALL
