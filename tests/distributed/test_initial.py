"""The checkpoint of step 0 gives the row before training again, bit for bit on its own layout."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from sparsecl.checkpoint.reader import Reader
from sparsecl.engine.loop.evaluate import evaluate_domains
from sparsecl.engine.resume import state
from sparsecl.engine.resume.keeper import INITIAL
from sparsecl.engine.schedule import make_schedule
from sparsecl.errors import UserError
from tests.distributed import cases

pytestmark = pytest.mark.dist

SHORT = ("phases.steps=2", "checkpoint.initial=true", "checkpoint.keep=1")


def score_again(
    cache: str, stage: str, overrides: tuple[str, ...], folder: str
) -> list[list[dict[str, float]]]:
    """Scores before training as recorded, of the trained weights, of those of step 0."""
    config = cases.load(cache, (*SHORT, *overrides))
    trainer, data, built = cases.assemble(config, stage, str(Path(folder) / "checkpoints"))
    trainer.run()

    def scores() -> list[dict[str, float]]:
        found = evaluate_domains(
            built.engine,
            trainer.texts,
            data.tokenizer.bytes_per_token,
            ("ends", "inside"),
            batch=config.eval.batch,
            step=0,
        )
        return [asdict(score["ends"]) for score in found.values()]

    trained = scores()
    state.restore(Path(folder) / INITIAL / "step_0", built, trainer.methods)
    again = scores()
    recorded = [
        {key: record[key] for key in trained[0]}
        for record in trainer.records
        if record["kind"] == "eval" and record["at"] == "start"
    ]
    return [recorded, trained, again]


PACKED = ("topology.storage=packed",)
SPLIT = ("parallel.tensor=2",)


@pytest.mark.fault("R3")
@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("zero0", SPLIT),
        ("zero2", PACKED),
        ("zero3", ()),
        cases.slow("zero0", (*SPLIT, *PACKED)),
        cases.slow("zero1", ()),
        cases.slow("zero1", (*SPLIT, "precision=bf16")),
        cases.slow("zero2", (*SPLIT, *PACKED)),
        cases.slow("zero3", PACKED),
        cases.slow("zero3", ("precision=bf16",)),
    ],
)
def test_row_0_is_computed_again(pool, shared_cache, tmp_path, stage, overrides):
    for recorded, trained, again in pool.run(
        score_again, 2, str(shared_cache), stage, overrides, str(tmp_path)
    ):
        assert recorded == again != trained


def keep_and_look(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> list[str]:
    """A run of 6 steps with kept checkpoints; checkpoints that are left, and those beside them."""
    config = cases.load(cache, (*KEEPING, *overrides))
    trainer, _, _ = cases.assemble(config, stage, str(Path(folder) / "checkpoints"))
    trainer.run()
    return sorted(
        str(path.relative_to(folder)) for path in Path(folder).glob("*/step_*") if path.is_dir()
    )


KEEPING = (*cases.TWO_DOMAINS, "phases.steps=3", "checkpoint.keep=1", "checkpoint.keep_steps=[2,6]")


@pytest.mark.parametrize("stage", ["zero1", cases.slow("zero3")])
def test_an_early_step_stays_beside_the_newest(pool, shared_cache, tmp_path, stage):
    """Also one at the end of a phase, and it is what a run of so many steps ends with."""
    for found in pool.run(keep_and_look, 2, str(shared_cache), stage, (), str(tmp_path)):
        assert found == ["checkpoints/step_6", "kept/step_2", "kept/step_6"]
    (tmp_path / "long").mkdir()
    longer = ("schedule.kind=constant", "schedule.warmup=0")
    short = (*cases.TWO_DOMAINS, "phases.steps=2", "phases.order=[a]", *longer)
    pool.run(keep_and_look, 2, str(shared_cache), stage, longer, str(tmp_path / "long"))
    pool.run(cases.train, 2, str(shared_cache), stage, short, str(tmp_path / "short"))
    kept, end = (Reader(p) for p in (tmp_path / "long/kept/step_2", tmp_path / "short/step_2"))
    for name in end.manifest.parameters:
        assert torch.equal(kept.read("master", name), end.read("master", name))


def test_steps_to_keep_are_within_the_run(shared_cache):
    config = cases.load(str(shared_cache), ("phases.steps=3", "checkpoint.keep_steps=[4]"))
    with pytest.raises(UserError, match=r"checkpoint.keep_steps=\[4\]: the run has 3 steps"):
        make_schedule(config, world_size=1)
    for steps in ("[0]", "[2, 2]"):
        with pytest.raises(UserError, match="keep_steps must be distinct and >= 1, got"):
            cases.load(str(shared_cache), (f"checkpoint.keep_steps={steps}",))
