"""Options of the methods that are modelled on the brain."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.methods.brain.cycle import Cycle
from sparsecl.methods.cl.config import DerppConfig
from sparsecl.methods.facts import MethodConfig, MethodMemory, RunFacts
from sparsecl.sparse.sizes import RankSizes

Sign = Literal["code", "mirror", "none"]
"""Which weights a sleep moves: those below and near zero, as in the code; above and near; all."""


@dataclass(frozen=True, kw_only=True)
class XdgConfig(MethodConfig):
    """How many hidden units a domain does without."""

    flags = {"I": "yes", "B": "yes", "C": "a product for each hidden unit"}

    closed: Annotated[float, Ge(0.0), Lt(1.0)] = 0.8
    """Probability that a hidden unit of the feed-forward parts is closed in a domain; 0 is plain
    training."""

    def check(self, run: RunFacts) -> None:
        if run.joint:
            raise ValueError("one phase trains all domains: there is no domain to open units for")

    def memory(self, rank: RankSizes) -> MethodMemory:
        units = sum(layer.out_features for layer in rank.layers if layer.kind == "up")
        # The gates, and what the tap of each group has room for (sparse/units.py).
        return MethodMemory(kept=(rank.element + 24) * units)


@dataclass(frozen=True, kw_only=True)
class SleepReplayConfig(MethodConfig):
    """How long the feed-forward parts sleep after a phase, and what their spikes do to weights."""

    flags = {"B": "yes", "X": "a mean for each input of the feed-forward parts"}

    steps: Annotated[int, Ge(1)] = 1000
    """Time steps of the first sleep; 15000 in the public code."""

    longer: Annotated[float, Ge(0.0)] = 1.0 / 3.0
    """Each sleep is longer than the one before by this share of `steps`."""

    increase: Annotated[float, Ge(0.0)] = 0.01
    """What a weight of zero gains in a time step in which both its ends fire, a negative one up to
    twice that; in units of its matrix's root mean square. With `decrease` 0 too nobody sleeps:
    plain training, bit for bit."""

    decrease: Annotated[float, Ge(0.0)] = 0.001
    """What it loses, in the same units, when only the unit that it leads to fires."""

    sign: Sign = "code"
    """code: weights below and near zero move; mirror: above and near; none: all alike."""

    sign_width: Annotated[float, Gt(0.0)] = 0.17
    """How near, in the same units: 0.001 beside weights drawn from +-0.01 in the public code."""

    rate: Annotated[float, Gt(0.0), Le(1.0)] = 0.1
    """Probability that the strongest input fires in a time step."""

    decay: Annotated[float, Ge(0.0), Le(1.0)] = 0.999
    """Share of its voltage that a unit keeps."""

    scale: Annotated[float, Gt(0.0)] = 55.9
    """Of voltages (alpha)."""

    hidden_threshold: Annotated[float, Gt(0.0)] = 14.5
    """Voltage at which a hidden unit fires. Watch `hidden` and `outputs` of the record of a phase's
    end: units that never fire learn nothing."""

    output_threshold: Annotated[float, Gt(0.0)] = 44.6
    """Voltage at which an output fires."""

    sequences: Annotated[int, Ge(1)] = 16
    """Sequences of the phase from which its inputs and largest activations are measured."""

    def check(self, run: RunFacts) -> None:
        if any(layer.kind == "gate" for layer in run.layers):
            raise ValueError(
                "a gated feed-forward part has no one matrix that makes a hidden unit fire. Use "
                "model.form gpt or gpt2."
            )

    def memory(self, rank: RankSizes) -> MethodMemory:
        if not (self.increase or self.decrease):
            return MethodMemory()
        ups = [layer for layer in rank.layers if layer.kind == "up"]
        # Two matrices of a part as they were and as they are, what may move, and a gather of one;
        # or what goes into every linear.
        asleep = 24 * max((layer.num_cells for layer in ups), default=0)
        looked = 4 * rank.tokens * sum(layer.in_features for layer in rank.layers)
        kept = sum(layer.in_features for layer in ups)
        return MethodMemory(kept=4 * kept, passing=max(asleep, looked))


ASKING = ("replay", "derpp", "self_replay", "lwf", "sparcl", "wscl", "hst")
"""Methods that look for the new sequences of a step, of which there are none in sleep."""


@dataclass(frozen=True, kw_only=True)
class HstConfig(Cycle, MethodConfig):
    """When the model sleeps, what it remembers then, and how much weights are scaled down."""

    flags = {"D": "with `sleep`", "C": "a look at every linear, with `down_scaling`"}

    sequences: Annotated[int, Ge(1)] = 1024
    """Capacity of the memory for sleep, in training sequences of model.context tokens, over all
    ranks."""

    @property
    def reread_share(self) -> float:
        return self.num_asleep / self.every  # in the place of new ones: nothing is added to a step

    def check(self, run: RunFacts) -> None:
        self.check_cycle()
        check_alone(self.sleep, run.others)

    def memory(self, rank: RankSizes) -> MethodMemory:
        names = 16 * self.sequences if self.sleep else 0
        return MethodMemory(host=names) + down_scaling_memory(self, rank)


def check_alone(sleep: float, others: Collection[str]) -> None:
    """Raise ValueError if another method looks for the new sequences of a step that has none."""
    for name in others:
        if sleep and name in ASKING:
            raise ValueError(
                f"sleep={sleep:g}: methods.{name} asks every step for its new sequences, and there "
                "are none in sleep. Use sleep 0, or leave the other one out."
            )


def down_scaling_memory(cycle: Cycle, rank: RankSizes) -> MethodMemory:
    """In the last step of a cycle: which weights are weak, and of one whole linear its weights and
    sizes, for a moment."""
    if not cycle.down_scaling:
        return MethodMemory()
    whole = 20 * max(layer.num_cells for layer in rank.layers)
    return MethodMemory(update=rank.slices + whole)


@dataclass(frozen=True, kw_only=True)
class WsclConfig(Cycle, DerppConfig):
    """DER++ with blocks that are frozen (released), or in sleep alone (described). A cycle, its
    sleep and its down-scaling are of variant described."""

    flags = {
        "B": "variant released",
        "D": "yes, with logits",
        "F": "blocks, or strong weights while awake",
        "X": "variant described: one for each weight",
        "C": "replayed sequences, twice; trials when a phase begins, or sleep",
    }
    not_negative = ("held",)

    variant: Literal["released", "described"] = "released"
    """released: what the public code does; described: what the paper's text says."""

    trial_steps: Annotated[int, Ge(0)] = 8
    """released: steps of SGD of each copy when a phase begins; 0 = no trials, nothing is frozen."""

    trial_lr: Annotated[float, Gt(0.0)] = 0.03
    """Their learning rate; the public code's, for another model."""

    validation: Annotated[int, Ge(1)] = 64
    """Sequences of the phase that score a copy; it has not trained them. 1000 in the code."""

    stored: Annotated[int, Ge(1)] = 32
    """Remembered sequences that score it. 200 in the code."""

    held: Annotated[float, Ge(0.0), Le(1.0)] = 0.2
    """described: share of the weights of each linear, those of largest |w|, that is frozen while
    awake."""

    @property
    def described(self) -> bool:
        return self.variant == "described"

    @property
    def reread_share(self) -> float:
        share = self.replayed_share
        return self.num_asleep / self.every * (1.0 + share) if self.described else share

    def check(self, run: RunFacts) -> None:
        super().check(run)
        if self.described:
            self.check_cycle()
            check_alone(self.sleep, run.others)

    def memory(self, rank: RankSizes) -> MethodMemory:
        found = super().memory(rank) + MethodMemory(beside=rank.held)
        if self.described:
            found += MethodMemory(beside=4 * rank.slices)
            return found + down_scaling_memory(self, rank)
        if not self.trial_steps:
            return super().memory(rank)
        # A copy's weights and gradients, and the model that scores it.
        passing = (rank.element + 4) * rank.parameters + 8 * rank.slices + rank.copy
        return found + MethodMemory(passing=passing)
