"""optimizer.kind muon in ZeRO 0, against torch.optim.Muon beside AdamW in plain PyTorch."""

from typing import Any

import pytest
import torch

from sparsecl.errors import UserError
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.references.run import ReferenceRun
from tests.distributed.test_method_laws import go_on

pytestmark = pytest.mark.dist

MUON = (*cases.TWO_DOMAINS, "optimizer.kind=muon", "optimizer.momentum=0.95")


class Both:
    """Two optimizers as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def step(self) -> None:
        for part in self.parts:
            part.step()


class MuonReference(ReferenceRun):
    def __init__(self, cache: str, overrides: tuple[str, ...]) -> None:
        super().__init__(cache, overrides)
        self.begun = {name: param.detach().clone() for name, param in self.params.items()}
        linears = [param for name, param in self.params.items() if name in self.masks]
        muon = torch.optim.Muon(
            linears, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if all(p is not one for one in linears)]
        self.optimizer: Any = Both(muon, self.optimizer)

    def after_update(self) -> None:
        for name, mask in self.masks.items():
            self.params[name].mul_(mask)


@pytest.mark.parametrize(("tp", "dp"), [(2, 1), cases.slow(1, 2)])
def test_it_is_torchs_muon_and_a_resume_is_no_stop(pool: Pool, shared_cache, tmp_path, tp, dp):
    """Newton-Schulz is in bf16: where a joined gradient rounds otherwise, some entries do too."""
    reference = MuonReference(str(shared_cache), MUON)
    trace = reference.train()
    layout = (f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")
    kept = ("checkpoint.every=3", "checkpoint.keep=9")
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    run = (tp * dp, str(shared_cache), "zero0", (*MUON, *layout, *kept))
    for rank in pool.run(cases.train, *run, str(whole)):
        assert rank["losses"] == pytest.approx(trace.losses, abs=2e-4)
        assert rank["audit"][0] >= 4 and rank["audit"][1] == 0
        losses = rank["losses"]
    once = cases.masters(whole)
    apart = {
        name: float(once[name][: len(weight)].sub(weight).abs().max())
        for name, weight in trace.weights.items()
    }
    assert max(apart.values()) < 5e-4, apart
    for name in reference.masks:
        assert (trace.weights[name] - reference.begun[name]).abs().max() > 20 * apart[name]
    plain = ReferenceRun(str(shared_cache), cases.TWO_DOMAINS).train().losses
    assert max(abs(a - b) for a, b in zip(plain, losses, strict=True)) > 0.01
    assert pool.run(go_on, *run, str(whole), str(rest))[0] == losses[13:]
    twice = cases.masters(rest)
    assert all(once[name].equal(twice[name]) for name in once)


@pytest.mark.slow
def test_bf16_passes_its_audits(pool: Pool, shared_cache, tmp_path):
    overrides = (*MUON, "precision=bf16", "parallel.tensor=2", "batch.micro=4")
    for rank in pool.run(cases.train, 2, str(shared_cache), "zero0", overrides, str(tmp_path)):
        assert rank["wrapper"] == "FP16_UnfusedOptimizer"
        assert rank["audit"][0] >= 4 and rank["audit"][1] == 0


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3"])
def test_stages_that_cut_matrices_are_refused(stage):
    config = cases.load("unused", MUON)
    with pytest.raises(
        UserError, match=r"zero_optimization.stage: is .*kind=muon needs whole .*zero0"
    ):
        cases.resolve(config, cases.make_schedule(config, world_size=1), stage)


def test_packed_storage_is_refused():
    config = cases.load("unused", (*MUON, "topology.storage=packed"))
    with pytest.raises(UserError, match=r"optimizer.kind=muon needs matrices.*storage=masked"):
        cases.make_schedule(config, world_size=1)
