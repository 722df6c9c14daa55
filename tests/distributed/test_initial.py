"""The checkpoint of step 0 gives the row before training again, bit for bit on its own layout."""

from dataclasses import asdict
from pathlib import Path

import pytest

from sparsecl.engine.loop.evaluate import evaluate_domains
from sparsecl.engine.resume import state
from sparsecl.engine.resume.keeper import INITIAL
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
