"""A run may begin from a checkpoint that is denser: its live weights are taken, the others left."""

from pathlib import Path

import pytest
import torch

from sparsecl.engine.resume import state
from sparsecl.errors import DataError
from tests.distributed import cases

pytestmark = pytest.mark.dist

SHORT = ("phases.steps=2", "checkpoint.keep=1")
DENSE = (*SHORT, "topology={kind: dense}")
# er_fixed draws by seed; a mask with more live weights need not hold one with fewer.
HALF = (*SHORT, "topology={kind: block_diag, density: 0.5}")
QUARTER = "topology={kind: block_diag, density: 0.25"


def begin(cache: str, stage: str, overrides: tuple[str, ...], start: str, folder: str) -> None:
    """A run takes the weights of `start`, and saves them after an audit."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    state.restore(Path(start), built, trainer.methods, weights_only=True)
    built.guard.audit(0)
    trainer.keeper.save(trainer.methods)


def refusal(cache: str, overrides: tuple[str, ...], start: str, folder: str) -> str:
    trainer, _, built = cases.assemble(cases.load(cache, overrides), "zero1", folder)
    with pytest.raises(DataError) as error:
        state.restore(Path(start), built, trainer.methods, weights_only=True)
    return str(error.value)


@pytest.mark.parametrize("before", [DENSE, HALF], ids=["dense", "half"])
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("zero0", "}"),
        ("zero3", ", storage: packed}"),
        cases.slow("zero2", ", storage: packed}"),
        cases.slow("zero3", "}"),
    ],
)
@pytest.mark.parametrize("tensor", [1, 2])
def test_live_weights_are_taken_and_the_others_left(
    pool, shared_cache, tmp_path, before, stage, more, tensor
):
    split = (f"parallel.tensor={tensor}",)
    pool.run(cases.train, 2, str(shared_cache), "zero1", before, str(tmp_path / "a"))
    (start,) = (tmp_path / "a").glob("step_*")
    overrides = (*SHORT, QUARTER + more, *split)
    out = str(tmp_path / "b")
    pool.run(begin, 2, str(shared_cache), stage, overrides, str(start), out)
    there, here = cases.masters(tmp_path / "a"), cases.masters(out)
    masked = 0
    for name, master in here.items():
        live = master != 0
        assert torch.equal(master[live], there[name][live])
        masked += int((there[name][~live] != 0).sum())
    assert masked > 0


@pytest.mark.parametrize("methods", ["{}", "{set: {}}"])
def test_a_checkpoint_that_lacks_a_live_weight_is_refused(pool, shared_cache, tmp_path, methods):
    """Also by a method that moves live weights: it keeps their number."""
    pool.run(cases.train, 2, str(shared_cache), "zero1", HALF, str(tmp_path / "a"))
    (start,) = (tmp_path / "a").glob("step_*")
    other = (*SHORT, "topology={kind: er_fixed, density: 0.25}", f"methods={methods}")
    for text in pool.run(refusal, 2, str(shared_cache), other, str(start), str(tmp_path / "b")):
        assert "and has not all weights that live in it" in text
