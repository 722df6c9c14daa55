"""What holds for every method: discarded steps, bf16, and a resume in the middle, bit for bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl import dist, faults
from tests.distributed import cases
from tests.distributed.method_cases import STEPWISE, WHOLE, overrides_of
from tests.distributed.pool import Pool

pytestmark = pytest.mark.dist

TURNS = [
    cases.slow(name, "zero3" if place % 2 else "zero2", 1, 2) for place, name in enumerate(WHOLE)
]
"""Each method in one of two layouts, in turn: what is stored by ZeRO is not the methods' work."""


def one_bad_step(cache: str, stage: str, overrides: tuple[str, ...], folder: str) -> list[bool]:
    """Whether each of five steps has changed what the methods know; the fourth is discarded."""
    trainer, *_ = cases.assemble(cases.load(cache, overrides), stage, folder)
    phase, changed = trainer.schedule.phases[0], []
    trainer._begin_phase(phase)
    faults.arm(["nan@loss:4"], seed=0, rank=dist.rank())
    for _ in range(5):
        before = known(trainer)
        trainer._step_and_watch(phase, _Silent())
        changed.append(known(trainer) != before)
    faults.disarm()
    return changed


def known(trainer: cases.RecordingTrainer) -> Any:
    """All that methods keep, to the bit; and the graph."""
    tensors, values = trainer.methods.state_dict()
    bits = {
        (state, name): value.cpu().contiguous().view(torch.uint8).tolist()
        for state, found in tensors.items()
        for name, value in found.items()
    }
    arrays = {key: value.tolist() for key, value in trainer.methods.arrays().items()}
    graph = [entry.topology.digest for entry in trainer.context.sparse.values()]
    return copy.deepcopy((bits, values, arrays, graph))


class _Silent:
    def advance(self, shown: Any) -> None: ...


@pytest.mark.parametrize("stage", ["zero2", cases.slow("zero3")])
@pytest.mark.parametrize("name", [name for name in WHOLE if "packed" not in name])
def test_a_discarded_step_changes_nothing_of_a_method(pool, shared_cache, tmp_path, name, stage):
    overrides = overrides_of(name, 1, 1)
    (changed,) = pool.run(one_bad_step, 1, str(shared_cache), stage, overrides, str(tmp_path))
    assert not changed[3]
    assert any(changed) == (name in STEPWISE)


def go_on(cache: str, stage: str, overrides: tuple[str, ...], folder: str, out: str) -> Any:
    """From a checkpoint in `folder` to the end; losses, and the weights in `out`."""
    trainer, *_ = cases.assemble(cases.load(cache, overrides), stage, out)
    trainer.take_up(Path(folder) / "step_13")
    trainer.run()
    return trainer.losses()


BF16 = ("precision=bf16", "checkpoint.every=3", "checkpoint.keep=9")


@pytest.mark.parametrize(("name", "stage", "tp", "dp"), TURNS)
def test_bf16_passes_its_audits_and_a_resume_is_no_stop(
    pool: Pool, shared_cache, tmp_path, name, stage, tp, dp
):
    """From step 13, in the middle of the second phase, bit for bit: weights are rounded, and what a
    method keeps beside them is not."""
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    run = (tp * dp, str(shared_cache), stage, (*overrides_of(name, tp, dp), *BF16))
    ranks = pool.run(cases.train, *run, str(whole))
    for rank in ranks:
        assert rank["audit"][0] >= 4 and rank["audit"][1] == 0
    assert pool.run(go_on, *run, str(whole), str(rest))[0] == ranks[0]["losses"][13:]
    once, twice = cases.masters(whole), cases.masters(rest)
    assert all(once[name].equal(twice[name]) for name in once)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["afaf", "sparcl", "progressive"])
def test_a_resume_in_another_layout_goes_on(pool: Pool, shared_cache, tmp_path, name):
    """From two tp ranks under ZeRO 2 to two dp ranks under ZeRO 3."""
    every = ("checkpoint.every=3", "checkpoint.keep=9")
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    before = (2, str(shared_cache), "zero2", (*overrides_of(name, 2, 1), *every))
    after = (2, str(shared_cache), "zero3", (*overrides_of(name, 1, 2), *every))
    losses = pool.run(cases.train, *before, str(whole))[0]["losses"]
    found = pool.run(go_on, *after, str(whole), str(rest))[0]
    assert found == pytest.approx(losses[13:], abs=1e-5)
    once, twice = cases.masters(whole), cases.masters(rest)
    for key in once:
        num = min(len(once[key]), len(twice[key]))  # padding is of the layout
        assert torch.allclose(once[key][:num], twice[key][:num], rtol=0.0, atol=1e-5)
