"""Every method in every layout, against a reference of some 30 lines in plain PyTorch.

20 steps over two domains, fp32: losses, gradient norms and final weights agree to 1e-5, and absent
and held weights pass the audits. bf16 and a resume in the middle have laws of their own below.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsecl import dist, faults
from tests.distributed import cases
from tests.distributed.pool import Pool
from tests.distributed.references.adapters import (
    AdapterReference,
    NLoraReference,
    OLoraReference,
)
from tests.distributed.references.agem import AgemReference, GemReference
from tests.distributed.references.cbp import CbpReference
from tests.distributed.references.derpp import DerppReference
from tests.distributed.references.l1 import L1Reference
from tests.distributed.references.lwf import LwfReference
from tests.distributed.references.packnet import PackNetReference
from tests.distributed.references.replay import ReplayReference
from tests.distributed.references.rewired import (
    ChtReference,
    ChtsReference,
    DeepRReference,
    EmsReference,
    GranetReference,
    MestReference,
    PerWeightReference,
    RiglReference,
    SetReference,
    SnfsReference,
)
from tests.distributed.references.run import ReferenceRun, Trace
from tests.distributed.references.self_replay import SelfReplayReference
from tests.distributed.references.shrink_perturb import ShrinkPerturbReference
from tests.distributed.references.springs import SpringReference
from tests.distributed.references.xdg import XdgReference

pytestmark = pytest.mark.dist


@dataclass(frozen=True)
class Case:
    """A method as it is tested: its options, and what it must agree with."""

    reference: type[ReferenceRun]
    overrides: tuple[str, ...]
    tolerance: float = 1e-5
    run: tuple[str, ...] = ()
    """Overrides of the run alone, which its reference knows nothing of."""


TRUE_FISHER = "methods.ewc={strength: 1000.0, sequences: 5, fisher: true}"
MAS = "methods.mas={strength: 1.0, sequences: 5}"
CBP = "methods.cbp={rate: 0.1, maturity: 3, decay: 0.9}"

AGEM = "methods.{}={{sequences: 12, sequences_per_step: 5}}"
# The second domain then soon pulls against the first: in 6 of 10 steps under A-GEM.
FAST = "optimizer.lr=0.02"

CASES = {
    "cbp": Case(CbpReference, (CBP,)),
    "cbp, packed": Case(CbpReference, (CBP,), run=("topology.storage=packed",)),
    # The third phase is the first that an earlier adapter pushes away.
    "o_lora": Case(
        OLoraReference,
        ("methods.o_lora={rank: 4, kinds: [q, down], l1: 0.02}", "phases.order=[a, b, a]"),
    ),
    "lora": Case(
        AdapterReference, ("methods.lora={rank: 4, kinds: [q, down]}", "phases.order=[a, b, a]")
    ),
    "lora, per domain": Case(
        AdapterReference,
        ("methods.lora={rank: 4, kinds: [q, down], per_domain: true}", "phases.order=[a, b, a]"),
    ),
    "n_lora": Case(
        NLoraReference,
        ("methods.n_lora={rank: 4, kinds: [q, down], l1: 0.002}", "phases.order=[a, b, a]"),
    ),
    "n_lora, code's": Case(
        NLoraReference,
        (
            "methods.n_lora={rank: 4, kinds: [q, o], l1: 0.02, penalty: code_product}",
            "phases.order=[a, b, a]",
        ),
    ),
    "ewc": Case(SpringReference, ("methods.ewc={strength: 1000.0, sequences: 5}",)),
    "ewc, true": Case(SpringReference, (TRUE_FISHER,)),
    "si": Case(SpringReference, ("methods.si={strength: 10.0}",)),
    "si, clip": Case(SpringReference, ("methods.si={strength: 10.0, negative: clip}",)),
    "mas": Case(SpringReference, (MAS,)),
    # No penalty is in what another one measures.
    "springs": Case(SpringReference, (TRUE_FISHER, MAS, "methods.si={strength: 5.0}")),
    "derpp": Case(
        DerppReference,
        ("methods.derpp={sequences: 40, share: 0.5, alpha: 0.5, top: 5, rest: 0.3}",),
    ),
    "lwf": Case(LwfReference, ("methods.lwf={alpha: 20.0}",)),
    "agem": Case(AgemReference, (AGEM.format("agem"), FAST)),
    # The third phase has two constraints.
    "gem": Case(
        GemReference, (AGEM.format("gem"), FAST, "phases.order=[a, b, a]", "phases.steps=7")
    ),
    "self_replay": Case(SelfReplayReference, ("methods.self_replay={sequences: 20, share: 0.5}",)),
    "set": Case(SetReference, ("methods.set={every: 3, drop_fraction: 0.3}",)),
    "rigl": Case(RiglReference, ("methods.rigl={every: 3, drop_fraction: 0.3}",)),
    "per_weight": Case(
        PerWeightReference,
        ("methods.set={every: 3, drop_fraction: 0.3, adam_restart: per_weight}",),
    ),
    "mest": Case(MestReference, ("methods.set={every: 3, drop: mest, mest_gradient: 3.0}",)),
    "snfs": Case(SnfsReference, ("methods.snfs={every: 3}",)),
    "granet": Case(
        GranetReference,
        ("methods.granet={every: 3, final_density: 0.1, final_fraction: 0.1}",),
    ),
    "granet, layer": Case(
        GranetReference,
        ("methods.granet={every: 3, final_density: 0.1, scope: layer}",),
    ),
    "deep_r": Case(DeepRReference, ("methods.deep_r={l1: 0.3, noise: 0.3}",)),
    "deep_r, global": Case(
        DeepRReference, ("methods.deep_r={l1: 0.3, noise: 0.3, every: 4, scope: global}",)
    ),
    "deep_r, soft": Case(DeepRReference, ("methods.deep_r={l1: 0.05, noise: 0.3, variant: soft}",)),
    "cht": Case(ChtReference, ("methods.cht={every: 3, stop_overlap: 1.0}",)),
    "chts": Case(ChtsReference, ("methods.chts={every: 3}",)),
    "chtss": Case(ChtsReference, ("methods.chts={every: 3, final_density: 0.1}",)),
    "em_s by head": Case(
        EmsReference, ("methods.chts={every: 3, em_s: [0.05, 0.025], per_head: true}",)
    ),
    "packnet": Case(PackNetReference, ("methods.packnet={prune: [0.5, 0.25]}",)),
    "replay": Case(ReplayReference, ("methods.replay={sequences: 64, share: 0.5}",)),
    "xdg": Case(XdgReference, ("methods.xdg={closed: 0.5}",)),
    "shrink_perturb": Case(
        ShrinkPerturbReference, ("methods.shrink_perturb={shrink: 1.0, sigma: 0.001}",)
    ),
    "shrink_perturb, packed": Case(
        ShrinkPerturbReference,
        ("methods.shrink_perturb={shrink: 1.0, sigma: 0.001}",),
        run=("topology.storage=packed",),
    ),
    "l1": Case(L1Reference, ("methods.l1={strength: 0.3, towards: start}",)),
    "l1, subgradient": Case(
        L1Reference, ("methods.l1={strength: 0.01, form: subgradient, vectors: true}",)
    ),
}

# Those whose state or graph moves within a phase.
STEPWISE = (
    "cbp",
    "derpp",
    "replay",
    "si",
    "si, clip",
    "springs",
    "set",
    "rigl",
    "per_weight",
    "mest",
    "snfs",
    "granet",
    "granet, layer",
    "deep_r",
    "deep_r, global",
    "deep_r, soft",
    "cht",
    "chts",
    "chtss",
    "em_s by head",
)
STAGES = ("zero0", "zero1", "zero2", "zero3")
# Those that look at more than one element at a time, and so at tp's split.
SPLIT = (
    *("cbp", "o_lora", "derpp", "rigl", "packnet", "snfs", "granet", "deep_r", "cht", "chtss"),
    *("springs", "n_lora", "self_replay", "xdg"),
)
# Parts of "springs" and "n_lora", or like them: seen in one layout, in the slow tests.
PARTS = {
    "ewc, true": ("zero2", 2, 1),
    "si": ("zero3", 1, 2),
    "si, clip": ("zero3", 1, 2),
    "mas": ("zero2", 2, 1),
    "lora": ("zero3", 1, 2),
    "lora, per domain": ("zero3", 1, 2),
    "n_lora, code's": ("zero2", 2, 1),
}
LAYOUTS = [
    *((stage, tp, dp) for stage in STAGES for tp, dp in ((1, 2), (2, 1))),
    ("zero2", 2, 2),
    ("zero2_offload", 1, 2),
]


def is_fast(name: str, layout: tuple[str, int, int]) -> bool:
    if name in PARTS or (name == "n_lora" and layout[0] == "zero3"):
        return False
    return layout == ("zero3", 1, 2) or (layout == ("zero2", 2, 1) and name in SPLIT)


EACH = [
    (name, *layout) if is_fast(name, layout) else cases.slow(name, *layout)
    for name in CASES
    for layout in ([PARTS[name]] if name in PARTS else LAYOUTS)
]
WHOLE = [name for name in CASES if name not in PARTS]


def overrides_of(name: str, tp: int, dp: int) -> tuple[str, ...]:
    """With two micro-batches a step."""
    layout = (f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")
    return (*cases.TWO_DOMAINS, *CASES[name].overrides, *CASES[name].run, *layout)


@pytest.fixture(scope="module")
def references(shared_cache: Path) -> Any:
    """The trace of a method's reference, made once."""
    found: dict[str, Trace] = {}

    def trace(name: str) -> Trace:
        if name not in found:
            case = CASES[name]
            overrides = (*cases.TWO_DOMAINS, *case.overrides)
            found[name] = case.reference(str(shared_cache), overrides).train()
        return found[name]

    return trace


@pytest.mark.parametrize(("name", "stage", "tp", "dp"), EACH)
def test_a_method_is_its_reference(
    pool: Pool, shared_cache, tmp_path, references, record_property, name, stage, tp, dp
):
    overrides = overrides_of(name, tp, dp)
    ranks = pool.run(cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path))
    trace = references(name)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(trace.losses, abs=CASES[name].tolerance)
        assert rank["norms"] == pytest.approx(trace.norms, abs=1e-4)
        assert rank["audit"][1] == 0
        assert len(rank["figures"]) == len(trace.figures)
        for found, wanted in zip(rank["figures"], trace.figures, strict=True):
            assert found == {key: pytest.approx(value, abs=1e-3) for key, value in wanted.items()}
    found = cases.masters(tmp_path)
    apart = {
        key: float(found[key][: len(weight)].sub(weight).abs().max())
        for key, weight in trace.weights.items()
    }
    record_property("parity", [name, stage, tp, dp, max(apart.values())])
    assert max(apart.values()) < CASES[name].tolerance, max(apart, key=lambda key: apart[key])
    if (stage, tp) == ("zero2", 2):
        run = (str(shared_cache), stage, overrides, str(tmp_path), str(tmp_path / "again"))
        assert all(pool.run(at_the_end, tp * dp, *run))


def at_the_end(cache: str, stage: str, overrides: tuple[str, ...], folder: str, out: str) -> bool:
    """A resume from the last checkpoint, after which a run has nothing but its end to write."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, out)
    trainer.take_up(max(Path(folder).glob("step_*"), key=lambda path: int(path.name[5:])))
    built.guard.audit(trainer.step)
    trainer.run()
    last = len(trainer.schedule.phases) - 1
    domain = trainer.schedule.domain_name(trainer.schedule.phases[last])
    return (trainer.context.progress.phase, trainer.context.domain) == (last, domain)


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


@pytest.mark.parametrize("stage", ["zero2", cases.slow("zero0"), cases.slow("zero3")])
@pytest.mark.parametrize("name", [name for name in WHOLE if "packed" not in name])
def test_a_discarded_step_changes_nothing_of_a_method(pool, shared_cache, tmp_path, name, stage):
    overrides = overrides_of(name, 1, 1)
    (changed,) = pool.run(one_bad_step, 1, str(shared_cache), stage, overrides, str(tmp_path))
    assert not changed[3]
    assert any(changed) == (name in STEPWISE)


@pytest.mark.parametrize("name", CASES)
def test_a_method_does_something(shared_cache, references, name):
    """Else agreement with the reference would say nothing."""
    plain = ReferenceRun(str(shared_cache), cases.TWO_DOMAINS).train()
    apart = [abs(a - b) for a, b in zip(plain.losses, references(name).losses, strict=False)]
    assert max(apart) > 1e-3


@pytest.mark.parametrize(
    ("stage", "tp", "dp"), [cases.slow("zero2", 1, 2), cases.slow("zero3", 1, 2)]
)
@pytest.mark.parametrize("name", WHOLE)
def test_bf16_passes_its_audits(pool: Pool, shared_cache, tmp_path, name, stage, tp, dp):
    overrides = (*overrides_of(name, tp, dp), "precision=bf16")
    for rank in pool.run(cases.train, tp * dp, str(shared_cache), stage, overrides, str(tmp_path)):
        assert rank["audit"][0] >= 4 and rank["audit"][1] == 0


def go_on(cache: str, stage: str, overrides: tuple[str, ...], folder: str, out: str) -> Any:
    """From a checkpoint in `folder` to the end; losses, and the weights in `out`."""
    trainer, *_ = cases.assemble(cases.load(cache, overrides), stage, out)
    trainer.take_up(Path(folder) / "step_13")
    trainer.run()
    return trainer.losses()


@pytest.mark.parametrize(
    ("stage", "tp", "dp"), [cases.slow("zero2", 1, 2), cases.slow("zero3", 1, 2)]
)
@pytest.mark.parametrize("name", WHOLE)
def test_a_resume_in_the_middle_is_no_stop(pool: Pool, shared_cache, tmp_path, name, stage, tp, dp):
    """From step 13, in the middle of the second phase, bit for bit."""
    overrides = (*overrides_of(name, tp, dp), "checkpoint.every=3", "checkpoint.keep=9")
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    run = (tp * dp, str(shared_cache), stage, overrides)
    losses = pool.run(cases.train, *run, str(whole))[0]["losses"]
    assert pool.run(go_on, *run, str(whole), str(rest))[0] == losses[13:]
    once, twice = cases.masters(whole), cases.masters(rest)
    assert all(once[name].equal(twice[name]) for name in once)
