"""Methods as they are tested: their options, and the references that they must agree with."""

from dataclasses import dataclass

from tests.distributed import cases
from tests.distributed.references.adapters import (
    AdapterReference,
    NLoraReference,
    OLoraReference,
)
from tests.distributed.references.agem import AgemReference, GemReference
from tests.distributed.references.cbp import CbpReference
from tests.distributed.references.derpp import DerppReference
from tests.distributed.references.dropout import DropoutReference
from tests.distributed.references.hst import HstReference
from tests.distributed.references.l1 import L1Reference
from tests.distributed.references.l2 import L2Reference
from tests.distributed.references.lwf import LwfReference
from tests.distributed.references.memory import MemoryReference
from tests.distributed.references.osft import OsftReference
from tests.distributed.references.packnet import PackNetReference
from tests.distributed.references.progressive import ProgressiveReference
from tests.distributed.references.redo import RedoReference
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
from tests.distributed.references.run import ReferenceRun
from tests.distributed.references.self_replay import SelfReplayReference
from tests.distributed.references.shrink_perturb import ShrinkPerturbReference
from tests.distributed.references.sleep_replay import SleepReplayReference
from tests.distributed.references.sparse_cl import AfafReference, DstClReference, SparclReference
from tests.distributed.references.springs import SpringReference
from tests.distributed.references.upgd import UpgdReference
from tests.distributed.references.wscl import DescribedReference, WsclReference
from tests.distributed.references.xdg import XdgReference


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

SLEEP = (
    "methods.sleep_replay={steps: 40, sequences: 5, increase: 0.1, decrease: 0.05, rate: 0.3, "
    "hidden_threshold: 5.0, output_threshold: 5.0}"
)
MEMORY = (
    "methods.memory={{layers: [0, 1], keys: 6, key_width: 8, heads: 2, reads: 3, top: 9, "
    "background: 3, {}}}"
)
DENSE = "topology.kind=dense"
SPARCL = (
    "methods.sparcl={{every: 3, band: 0.05, refresh: 2, remove: 0.6, remove_until: 1.0, "
    "portions: 2, denominator: {}}}"
)
# Texts of 25 sequences, so that a phase reads them three times.
SHORT = (
    "data.domains=[{name: a, source: synthetic, synthetic: {train_tokens: 416, "
    "validation_tokens: 400, num_symbols: 8}}, {name: b, source: synthetic, synthetic: "
    "{train_tokens: 416, validation_tokens: 400, num_symbols: 8}}]"
)

HST = "methods.hst={every: 4, sleep: 0.5, down_scaling: 0.2, protected: 0.25, sequences: 24}"
WSCL = "methods.wscl={{sequences: 40, share: 0.5, alpha: 0.5, top: 5, rest: 0.3, {}}}"

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
    # Shared by both blocks; the third phase is the first that an earlier one may have met.
    "memory": Case(
        MemoryReference,
        (
            MEMORY.format("sgd: 3.0"),
            "phases.order=[a, b, a]",
            "phases.steps=7",
        ),
    ),
    "memory, kl": Case(MemoryReference, (MEMORY.format("rule: kl, gate: true"),)),
    # A block that is made again counts its reads twice: shares stay what they are.
    "memory, spread": Case(
        MemoryReference,
        (MEMORY.format("sgd: 3.0"),),
        run=("parallel.sequence=true", "model.activation_checkpointing=true"),
    ),
    "osft": Case(OsftReference, (DENSE, "methods.osft={sequences: 5}")),
    "osft, fixed": Case(OsftReference, (DENSE, "methods.osft={rule: fixed, share: 0.5}")),
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
    "afaf": Case(AfafReference, ("methods.afaf={every: 3, links: 0.5}",)),
    "dst_cl": Case(DstClReference, ("methods.dst_cl={every: 3}",)),
    "dst_cl, unfired": Case(
        DstClReference, ("methods.dst_cl={every: 4, growth: unfired, drop: per_sign}",)
    ),
    "dst_cl, gradient": Case(DstClReference, ("methods.dst_cl={every: 3, growth: gradient}",)),
    "dst_cl, momentum": Case(
        DstClReference, ("methods.dst_cl={every: 3, growth: momentum, drop: gradient}",)
    ),
    "packnet": Case(PackNetReference, ("methods.packnet={prune: [0.5, 0.25]}",)),
    # The third column hears two.
    "progressive": Case(
        ProgressiveReference,
        ("methods.progressive={rank: 6}", "phases.order=[a, b, a]", "phases.steps=7"),
    ),
    "progressive, spread": Case(
        ProgressiveReference,
        ("methods.progressive={rank: 6}",),
        run=(
            "parallel.sequence=true",
            "model.activation_checkpointing=true",
            "topology.storage=packed",
        ),
    ),
    "replay": Case(ReplayReference, ("methods.replay={sequences: 64, share: 0.5}",)),
    "sleep_replay": Case(SleepReplayReference, (SLEEP,)),
    "sleep_replay, packed": Case(SleepReplayReference, (SLEEP,), run=("topology.storage=packed",)),
    "sparcl": Case(SparclReference, (SPARCL.format("live, keep: 0.5"), SHORT)),
    "sparcl, all": Case(SparclReference, (SPARCL.format("all, keep: 0.2"), SHORT)),
    "xdg": Case(XdgReference, ("methods.xdg={closed: 0.5}",)),
    "hst": Case(HstReference, (HST,)),
    "hst, packed": Case(HstReference, (HST,), run=("topology.storage=packed",)),
    "hst, dense": Case(HstReference, (DENSE, HST)),
    # At this rate the copy with the first block frozen is the best one.
    "wscl": Case(
        WsclReference,
        (
            WSCL.format("trial_steps: 3, trial_lr: 0.5, validation: 8, stored: 6"),
            "phases.order=[a, b, a]",
        ),
    ),
    "wscl, described": Case(
        DescribedReference,
        (WSCL.format("variant: described, every: 4, sleep: 0.5, held: 0.5, down_scaling: 0.2"),),
    ),
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
    # A few units of each layer; none says nothing at all.
    "redo": Case(RedoReference, ("methods.redo={every: 3, tau: 0.6}",)),
    "redo, keep": Case(RedoReference, ("methods.redo={every: 3, tau: 0.6, moments: keep}",)),
    "upgd": Case(UpgdReference, ("methods.upgd={beta: 0.9, sigma: 0.5}",)),
    "upgd, code": Case(
        UpgdReference,
        ("methods.upgd={beta: 0.9, sigma: 0.5, scaling: code, protecting: false}",),
    ),
    "upgd, local": Case(
        UpgdReference,
        ("methods.upgd={beta: 0.9, sigma: 0.5, scope: local}",),
        run=("topology.storage=packed",),
    ),
    "upgd, feature": Case(
        UpgdReference, ("methods.upgd={beta: 0.9, sigma: 0.5, utility: feature}",)
    ),
    "dropout": Case(DropoutReference, ("methods.dropout={p: 0.3}",)),
    # A block that is made again, and positions that are spread, have the same silent units.
    "dropout, spread": Case(
        DropoutReference,
        ("methods.dropout={p: 0.3}",),
        run=("parallel.sequence=true", "model.activation_checkpointing=true"),
    ),
    "l2": Case(L2Reference, ("methods.l2={strength: 0.1, vectors: true}",)),
    "l2_init": Case(L2Reference, ("methods.l2_init={strength: 0.3}",)),
}

# Those whose state or graph moves within a phase.
STEPWISE = (
    "cbp",
    "redo",
    "upgd",
    "derpp",
    "replay",
    "si",
    "si, clip",
    "springs",
    "set",
    "rigl",
    "per_weight",
    "snfs",
    "granet",
    "deep_r",
    "deep_r, soft",
    "cht",
    "chts",
    "chtss",
    "afaf",
    "dst_cl",
    "sparcl",
    "hst",
    "wscl",
    "memory",
)
# Those that look at more than one element at a time, and so at tp's split: one of each kind, whose
# relatives are seen there by the slow tests.
SPLIT = (
    *("cbp", "o_lora", "derpp", "rigl", "packnet", "deep_r", "cht", "chtss", "springs"),
    *("self_replay", "osft", "dst_cl", "memory", "sleep_replay", "hst"),
)
# Parts of "springs" and "n_lora", or a score or a scope apart from another: seen in one layout, in
# the slow tests.
PARTS = {
    "ewc, true": ("zero2", 2, 1),
    "si": ("zero3", 1, 2),
    "si, clip": ("zero3", 1, 2),
    "mas": ("zero2", 2, 1),
    "lora": ("zero3", 1, 2),
    "lora, per domain": ("zero3", 1, 2),
    "n_lora, code's": ("zero2", 2, 1),
    "memory, kl": ("zero2", 2, 1),
    "memory, spread": ("zero3", 2, 1),
    "osft, fixed": ("zero2", 2, 1),
    "sleep_replay, packed": ("zero2", 2, 1),
    "mest": ("zero2", 2, 1),
    "granet, layer": ("zero3", 2, 1),
    "deep_r, global": ("zero2", 2, 2),
    "em_s by head": ("zero3", 2, 1),
    "dst_cl, unfired": ("zero3", 1, 2),
    "dst_cl, gradient": ("zero2", 2, 1),
    "sparcl, all": ("zero3", 1, 2),
    "hst, packed": ("zero2", 2, 1),
    "progressive, spread": ("zero3", 2, 1),
    "hst, dense": ("zero3", 1, 2),
    "wscl, described": ("zero2", 2, 1),
    "dst_cl, momentum": ("zero3", 1, 2),
    "l1, subgradient": ("zero2", 2, 1),
    "l2": ("zero2", 2, 1),
    "redo, keep": ("zero2", 2, 1),
    "dropout, spread": ("zero3", 2, 1),
    "upgd, code": ("zero2", 2, 1),
    "upgd, local": ("zero2", 2, 1),
    "upgd, feature": ("zero3", 2, 2),
}
WHOLE = [name for name in CASES if name not in PARTS]
# Made of what others are seen with in every stage: seen in two layouts.
BRIEF = ("cbp, packed", "per_weight", "deep_r, soft", "chts", "shrink_perturb, packed")
# Those that the project's proofs stand on: seen in every stage and layout.
PROOFS = ("ewc", "set", "packnet")


def overrides_of(name: str, tp: int, dp: int) -> tuple[str, ...]:
    """With two micro-batches a step."""
    layout = (f"parallel.tensor={tp}", f"batch.micro={8 // dp // 2}")
    return (*cases.TWO_DOMAINS, *CASES[name].overrides, *CASES[name].run, *layout)
