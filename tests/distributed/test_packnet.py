"""PackNet forgets nothing: what a domain scores, told which it is, stays to the last bit."""

from pathlib import Path
from typing import Any

import pytest

from sparsecl.errors import UserError
from tests.distributed import cases

pytestmark = pytest.mark.dist

# Stages of each phase: steps 0..7 and 8..9. The third phase takes domain a up again.
PACKNET = (*cases.TWO_DOMAINS, "phases.order=[a, b, a]", "methods.packnet={prune: 0.5}")
SPLIT = "parallel.tensor=2"
BF16 = "precision=bf16"


def scores(trainer: Any) -> dict[str, dict[Any, float]]:
    """Summed losses by (phase, domain), of the network as it stands and told the domain."""
    found: dict[str, dict[Any, float]] = {"eval": {}, "eval_with_identity": {}}
    for record in trainer.records:
        if record["kind"] in found and record["at"] != "during":
            found[record["kind"]][record["phase"], record["domain"]] = record["loss_sum"]
    return found


def train(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> Any:
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    trainer.run()
    return scores(trainer), built.guard.nonzero, built.guard.held


def assert_nothing_is_forgotten(found: dict[str, dict[Any, float]], *, begins: int = 0) -> None:
    """begins: the phase whose network the second phase goes on with; -1 = none, it begins anew."""
    plain, told = found["eval"], found["eval_with_identity"]
    assert told[0, "a"] == told[1, "a"] and told[1, "b"] == told[2, "b"]
    assert plain[0, "a"] != plain[1, "a"] and plain[1, "b"] != plain[2, "b"]
    assert told[2, "a"] == plain[2, "a"]  # the last phase uses all that there is
    # A domain that is not trained yet is scored with the network as it stands.
    for untrained in ((-1, "a"), (-1, "b"), (0, "b")):
        assert told[untrained] == plain[untrained]
    assert told[0, "a"] < plain[-1, "a"] and told[1, "b"] < plain[begins, "b"]


@pytest.mark.parametrize(
    ("stage", "tp", "dp", "extra"),
    [
        ("zero0", 1, 1, ("topology.kind=dense",)),
        cases.slow("zero0", 1, 2, (BF16,)),
        cases.slow("zero0", 2, 1, ()),
        cases.slow("zero1", 1, 2, ()),
        ("zero1", 2, 1, (BF16,)),
        cases.slow("zero1", 1, 2, (BF16, "topology.storage=packed")),
        cases.slow("zero2", 2, 2, ()),
        cases.slow("zero2", 1, 2, (BF16,)),
        cases.slow("zero2", 2, 1, (BF16, "topology.kind=dense")),
        cases.slow("zero2_offload", 1, 2, ()),
        cases.slow("zero3", 1, 2, ("topology.storage=packed",)),
        ("zero3", 1, 2, (BF16,)),
        cases.slow("zero3", 2, 1, ()),
        cases.slow("zero3", 2, 2, (BF16,)),
    ],
)
def test_nothing_is_forgotten_to_the_last_bit(pool, shared_cache, tmp_path, stage, tp, dp, extra):
    layout = (f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")
    overrides = (*PACKNET, *extra, *layout)
    ranks = pool.run(train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    for found, nonzero, held in ranks:
        assert nonzero == 0 and held == ranks[0][2]
        assert_nothing_is_forgotten(found)


def go_on(cache: str, overrides: tuple[str, ...], folder: str, out: str, step: int) -> Any:
    trainer, *_ = cases.assemble(cases.load(cache, overrides), "zero2", out)
    trainer.take_up(Path(folder) / f"step_{step}")
    trainer.run()
    return trainer.losses(), scores(trainer)


@pytest.mark.slow
def test_a_resume_at_a_border_and_within_a_stage_is_no_stop(pool, shared_cache, tmp_path):
    every = (*PACKNET, "batch.micro=2", "checkpoint={every: 1, keep: 40}")
    run = cases.train, 2, str(shared_cache), "zero2", every
    losses = pool.run(*run, str(tmp_path / "whole"))[0]["losses"]
    once = cases.masters(tmp_path / "whole")
    # After pruning, at the border of stages, at that of phases.
    for step in (9, 18, 20):
        out = tmp_path / str(step)
        args = (str(shared_cache), every, str(tmp_path / "whole"), str(out), step)
        found, rows = pool.run(go_on, 2, *args)[0]
        assert found == losses[step:]
        twice = cases.masters(out)
        assert all(once[name].equal(twice[name]) for name in once)
        assert rows["eval_with_identity"][2, "a"] == rows["eval"][2, "a"]


def rolled_back(cache: str, folder: str, at: int) -> Any:
    """After step `at` back to the checkpoint before it, once."""
    overrides = (*PACKNET, "batch.micro=2", "checkpoint={every: 4, keep: 40}")
    return rolled_back_with(cache, overrides, folder, at)


def rolled_back_with(cache: str, overrides: tuple[str, ...], folder: str, at: int) -> Any:
    """The same in any run."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), "zero2", folder)
    back = trainer.run_with_rollback(at, lambda: trainer.step)
    return back, scores(trainer), built.guard.nonzero


@pytest.mark.parametrize("at", [17, cases.slow(19)])
def test_a_rollback_gives_back_what_a_phase_has_taken(pool, shared_cache, tmp_path, at):
    """From the second stage of the second phase to its first, and to the border of the two."""
    back, found, nonzero = pool.run(rolled_back, 2, str(shared_cache), str(tmp_path), at)[0]
    assert back == [14 if at == 17 else 18] and nonzero == 0
    assert_nothing_is_forgotten(found)


def forgotten(cache: str, folder: str, out: str, steps: tuple[int, ...]) -> Any:
    """What is said to resumes that begin methods anew."""
    trainer, *_ = cases.assemble(cases.load(cache, PACKNET), "zero2", out)
    said = []
    for step in steps:
        try:
            trainer.take_up(Path(folder) / f"step_{step}", weights_only=True)
            said.append("")
        except UserError as error:
            said.append(str(error))
    return said


def test_a_resume_without_its_state_is_refused(pool, shared_cache, tmp_path):
    """In a later phase, and where this one has pruned; before that there is nothing to know."""
    overrides = (*PACKNET, "checkpoint={every: 3, keep: 19}")
    folder, rest = str(tmp_path / "whole"), str(tmp_path / "rest")
    pool.run(cases.train, 1, str(shared_cache), "zero2", overrides, folder)
    early, *later = pool.run(forgotten, 1, str(shared_cache), folder, rest, (3, 9, 10, 13))[0]
    assert early == ""
    for said in later:
        assert "methods.packnet: which weights belong to which phase is not known" in said
