"""A run that goes on with other ranks reads every sequence once, and no other."""

from pathlib import Path

import numpy as np
import pytest

from sparsecl import dist
from sparsecl.checkpoint.publish import newest_valid
from sparsecl.data.batches import PhaseStream
from sparsecl.data.prepare import prepare
from sparsecl.methods.context import Batch
from tests.distributed import cases

pytestmark = pytest.mark.dist

STEPS, SEQUENCES = 6, 8
SPLIT = ("parallel.tensor=2", "batch.micro=4")


class _Silent:
    def advance(self, shown: object) -> None: ...


def read_part(
    cache: str, stage: str, overrides: tuple[str, ...], folder: str, stop: int
) -> dict[int, list[bytes]]:
    """Go on from the checkpoint in `folder`, if there is one, up to step `stop`, and save.

    Returns:
        Step -> the sequences that this rank has trained on; of the tp ranks the first counts.
    """
    config = cases.load(cache, (f"phases.steps={STEPS}", *overrides))
    trainer, _, built = cases.assemble(config, stage, folder)
    found, _ = newest_valid(Path(folder))
    if found is not None:
        trainer.take_up(found)
    read: dict[int, list[bytes]] = {}

    def batch(_: object, taken: Batch) -> Batch:
        seen = [row.tobytes() for row in taken.rows] if dist.tp_rank() == 0 else []
        read.setdefault(trainer.step, []).extend(seen)
        return taken

    trainer.methods.batch = batch
    while trainer.step < stop:
        trainer._step_and_watch(trainer.schedule.phases[0], _Silent())
    trainer._save()
    return read


def in_order(cache: Path) -> list[bytes]:
    """The sequences of the phase in the order of the run, as one process reads them."""
    config = cases.load(str(cache), ())
    data = prepare(config.data, config.tokenizer, context=16, seed=0, show_progress=False)
    stream = PhaseStream(data.domains[0].train, context=16, seed=0, phase=0, domain_name="a")
    return [row.tobytes() for row in stream.rows(np.arange(STEPS * SEQUENCES))]


@pytest.mark.fault("C9", "C10")
@pytest.mark.parametrize(
    "layouts",
    [
        [("zero2", 2, ("batch.micro=2",)), ("zero3", 1, ()), ("zero0", 2, SPLIT)],
        [("zero1", 2, SPLIT), ("zero2", 2, ("batch.micro=1",))],
    ],
)
def test_no_sequence_is_lost_or_read_twice(pool, shared_cache, tmp_path, layouts):
    every: dict[int, list[bytes]] = {step: [] for step in range(STEPS)}
    for number, (stage, world_size, overrides) in enumerate(layouts, start=1):
        stop = STEPS * number // len(layouts)
        words = (str(shared_cache), stage, overrides, str(tmp_path), stop)
        for found in pool.run(read_part, world_size, *words):
            for step, rows in found.items():
                every[step] += rows
    expected = in_order(shared_cache)
    # A few lines of this text are equal; a repetition is seen if those of a step are mostly not.
    assert len(set(expected)) > 0.9 * len(expected)
    for step, rows in every.items():
        first = SEQUENCES * step
        assert sorted(rows) == sorted(expected[first : first + SEQUENCES]), step
