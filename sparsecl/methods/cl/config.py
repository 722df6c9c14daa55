"""Options of the continual-learning methods for dense networks; they take a sparse one too."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.config import younger
from sparsecl.methods.facts import MethodConfig, MethodMemory, RunFacts
from sparsecl.optim.config import StageConfig
from sparsecl.sparse.sizes import RankSizes
from sparsecl.topology.layer import LayerShape


@dataclass(frozen=True, kw_only=True)
class EwcConfig(MethodConfig):
    """How strongly and in which form earlier weights are held."""

    flags = {"B": "yes", "X": "two for each weight"}
    networks = "one"
    not_negative = ("precision",)

    strength: Annotated[float, Ge(0.0)] = 1.0e4
    """lambda; depends on the problem, sweep 1e0..1e6. 0 is plain training, bit for bit."""

    variant: Literal["separate", "online"] = "separate"
    """One anchor per domain, or a decaying Fisher with the latest anchor."""

    gamma: Annotated[float, Ge(0.0), Le(1.0)] = 0.9
    """Decay of the old Fisher (online only)."""

    sequences: Annotated[int, Ge(1)] = 256
    """Training sequences of a phase over which its Fisher is averaged."""

    fisher: Literal["empirical", "true"] = younger("empirical")
    """Whose labels its gradients are of: those of the data, or drawn from the model's own
    predictions (twice the logits of a sequence in memory, for as long as it takes)."""

    def memory(self, rank: RankSizes) -> MethodMemory:
        return MethodMemory(beside=8 * rank.slices)


@dataclass(frozen=True, kw_only=True)
class SiConfig(MethodConfig):
    """How strongly weights are held whose way through earlier domains has lowered the loss."""

    flags = {"B": "yes", "X": "four for each weight"}
    networks = "one"

    strength: Annotated[float, Ge(0.0)] = 0.1
    """c; depends on the problem, sweep 1e-2..1e1. 0 is plain training, bit for bit."""

    xi: Annotated[float, Gt(0.0)] = 1.0e-3
    """Added to the squared way of a weight before its path integral is divided by it."""

    negative: Literal["keep", "clip"] = "keep"
    """What becomes of path integrals below zero: kept, which pushes such a weight away from its
    anchor, or set to zero."""

    def memory(self, rank: RankSizes) -> MethodMemory:
        # Importance, anchor, path and start; in a step its gradient and the weights before it.
        return MethodMemory(beside=16 * rank.slices, update=8 * rank.slices)


@dataclass(frozen=True, kw_only=True)
class MasConfig(MethodConfig):
    """How strongly weights are held that the logits depend on."""

    flags = {"B": "yes", "X": "two for each weight"}
    networks = "one"
    not_negative = ("precision",)

    strength: Annotated[float, Ge(0.0)] = 1.0e-3
    """lambda; our own default: the squared norm of all logits of a vocabulary is large, and 1 holds
    everything. Sweep 1e-5..1e-1. 0 is plain training, bit for bit."""

    sequences: Annotated[int, Ge(1)] = 256
    """Training sequences of a phase over which the importance is averaged."""

    def memory(self, rank: RankSizes) -> MethodMemory:
        return MethodMemory(beside=8 * rank.slices)


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(MethodConfig):
    """How many earlier sequences are remembered, and how many are trained again."""

    flags = {"D": "yes", "C": "replayed sequences"}
    networks = "one"

    sequences: Annotated[int, Ge(1)] = 1024
    """Capacity of the memory, in training sequences of model.context tokens, over all ranks."""

    share: Annotated[float, Gt(0.0), Lt(math.inf)] = 0.25
    """Replayed / new sequences of a batch. share * batch.micro must be a whole number >= 1."""

    @property
    def replayed_share(self) -> float:
        return self.share

    def check(self, run: RunFacts) -> None:
        self.num_replayed(run.micro)

    def memory(self, rank: RankSizes) -> MethodMemory:
        return MethodMemory(host=16 * self.sequences)  # their names

    def num_replayed(self, micro: int) -> int:
        """Replayed sequences beside `micro` new ones of a micro-batch, >= 1.

        Raises:
            ValueError: if share * micro is not whole, with the nearest shares that are.
        """
        wanted = self.share * micro
        num = round(wanted)
        # The six digits of the message below are enough for a share like 1/3.
        if num >= 1 and abs(wanted - num) <= 1e-5 * num:
            return num
        below, above = math.floor(wanted), math.ceil(wanted)
        fitting = " or ".join(f"{near / micro:.6g}" for near in (below, above) if near >= 1)
        raise ValueError(
            f"share={self.share:g} of the {micro} sequences of a micro-batch is {wanted:.6g}, not "
            f"a whole number >= 1. Use share {fitting}, or another batch.micro."
        )


@dataclass(frozen=True, kw_only=True)
class DerppConfig(ReplayConfig):
    """DER++: as replay, with two draws of that share, one for each of two terms."""

    networks = "none"
    flags = {"D": "yes, with logits", "C": "replayed sequences, twice"}

    alpha: Annotated[float, Ge(0.0)] = 0.1
    """Weight of the squared distance to the logits of then; 0 = no draw for it."""

    beta: Annotated[float, Ge(0.0)] = 0.5
    """Weight of the loss of replayed sequences; 0 = no draw for it, which is DER."""

    top: Annotated[int, Ge(1)] = 32
    """Logits that are kept of each position, the largest; 8 bytes each, on every rank: for
    `sequences` sequences of model.context tokens. All of the vocabulary if it is smaller."""

    rest: Annotated[float, Ge(0.0)] = 0.0
    """Weight, within alpha's term, of the squared change of the logsumexp of all logits."""

    @property
    def keeps_logits(self) -> bool:
        return True

    @property
    def replayed_share(self) -> float:
        return self.share * sum(weight > 0.0 for weight in (self.alpha, self.beta))

    def memory(self, rank: RankSizes) -> MethodMemory:
        of_token = 8 * min(self.top, rank.vocab_size) + 4
        remembered = MethodMemory(host=self.sequences * rank.context * of_token)
        return super().memory(rank) + remembered + MethodMemory(passing=rank.kept_logits)


@dataclass(frozen=True, kw_only=True)
class SelfReplayConfig(ReplayConfig):
    """How much the model writes of its own at a border, and how much of it is trained again."""

    networks = "none"
    flags = {
        "B": "yes",
        "D": "how sequences begin",
        "C": "replayed sequences, written by the model at each border",
    }

    sequences: Annotated[int, Ge(1)] = 256
    """Sequences of model.context tokens that the model writes at the start of each later phase; a
    token costs a forward pass over the tokens before it."""

    temperature: Annotated[float, Gt(0.0), Lt(math.inf)] = 1.0
    """Logits are divided by it when a token is drawn."""

    prompt: Annotated[int, Ge(0), Le(8)] = 1
    """Tokens of an earlier sequence that a written one goes on from; 0 = an end-of-text, for text
    of many documents, and nothing of the data is kept."""

    @property
    def reread_share(self) -> float:
        return 0.0

    def memory(self, rank: RankSizes) -> MethodMemory:
        begun = self.prompt * (rank.num_phases - 1)
        return MethodMemory(host=4 * self.sequences * (rank.context + 1 + begun))


@dataclass(frozen=True, kw_only=True)
class LwfConfig(MethodConfig):
    """How strongly the model is held to what it said before, on the new domain's text."""

    flags = {
        "B": "yes",
        "X": "the model of the phase before, twice",
        "C": "a second forward pass",
    }

    alpha: Annotated[float, Ge(0.0)] = 0.5
    """Weight of the distillation; 0 is plain training, bit for bit."""

    tau: Annotated[float, Gt(0.0), Lt(math.inf)] = 2.0
    """Temperature of both distributions; there is no factor of tau squared."""

    def check(self, run: RunFacts) -> None:
        if run.rewires:
            raise ValueError(
                "a method of the run moves live weights, and after a resume the model of the phase "
                f"before would be on another graph. Leave out one of {', '.join(run.others)}."
            )

    @property
    def keeps_logits(self) -> bool:
        return self.alpha > 0.0

    def memory(self, rank: RankSizes) -> MethodMemory:
        if not self.alpha:
            return MethodMemory()
        # The teacher's logits, and what the divergence of the two makes of them for a moment.
        logits = rank.kept_logits + 16 * rank.logits
        return MethodMemory(beside=4 * rank.slices, kept=rank.copy, passing=logits)


@dataclass(frozen=True, kw_only=True)
class AgemConfig(MethodConfig):
    """How many earlier sequences are remembered, and how many of them a step asks."""

    flags = {"B": "yes", "D": "yes", "C": "a second gradient, of remembered sequences"}

    sequences: Annotated[int, Ge(1)] = 256
    """Remembered training sequences of each earlier phase: their names, over all ranks."""

    sequences_per_step: Annotated[int, Ge(1)] = 32
    """Of these, drawn for each step from all earlier phases together; all if there are no more. A
    forward and a backward pass of each."""

    def references(self, num_phases: int) -> int:
        """Gradients of remembered sequences in one step, at most."""
        return min(1, num_phases - 1)

    def memory(self, rank: RankSizes) -> MethodMemory:
        num = self.references(rank.num_phases)
        # Gradients of one more backward pass as they come, and in fp32; then this rank's part.
        passing = (rank.element + 4) * rank.parameters + 4 * num * rank.slices
        names = 16 * self.sequences * (rank.num_phases - 1)
        return MethodMemory(passing=passing if num else 0, host=names)


@dataclass(frozen=True, kw_only=True)
class GemConfig(AgemConfig):
    """The same of each earlier phase on its own."""

    flags = {"B": "yes", "D": "yes", "C": "a second gradient for each earlier domain"}

    margin: Annotated[float, Ge(0.0), Lt(math.inf)] = 0.5
    """Least weight of every earlier phase's gradient where the step is bent; 0 = no more than the
    constraints ask for."""

    def references(self, num_phases: int) -> int:
        return num_phases - 1


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig(MethodConfig):
    """How many columns there are, and how much of the earlier ones a new one hears."""

    flags = {
        "I": "yes",
        "B": "yes",
        "F": "columns of earlier domains",
        "X": "a network for each domain after the first",
        "C": "a forward pass of every earlier column",
    }

    rank: Annotated[int, Ge(1)] = 16
    """Features that a block keeps of the hidden units of all earlier columns. Sweep 4..256."""

    num_columns: Annotated[int | None, Ge(1)] = None
    """Columns that are allocated; null = one for each phase. More are never used."""

    def columns(self, num_phases: int) -> tuple[int, int]:
        number = self.num_columns or num_phases
        return number, self.rank if number > 1 else 0

    def check(self, run: RunFacts) -> None:
        if run.joint:
            raise ValueError(
                "it gives each domain a column of its own, and phases.joint trains all at once. "
                "Leave out one of the two."
            )
        if self.num_columns is not None and self.num_columns < run.num_phases:
            raise ValueError(
                f"num_columns={self.num_columns}: the run has {run.num_phases} phases, and each "
                f"trains a column. Use {run.num_phases}, leave it out, or train fewer phases."
            )
        if not run.dense and run.role == "update":
            raise ValueError(
                "topology.role=update trains few weights of a base that all domains share, and "
                "columns share none. Use role topology."
            )
        if other := [name for name in run.others if name not in BESIDE_COLUMNS]:
            raise ValueError(
                f"{' and '.join(other)} would look at columns that rest. Beside columns there may "
                f"be {' or '.join(BESIDE_COLUMNS)}."
            )

    def memory(self, rank: RankSizes) -> MethodMemory:
        number, _ = self.columns(rank.num_phases)
        # All columns but the one that trains, as if they were of one size.
        return MethodMemory(beside=rank.held * (number - 1) // number)


BESIDE_COLUMNS = ("replay",)
"""Methods that ask nothing of weights: earlier sequences are trained in the new column."""

RETRAIN = "retrain"


@dataclass(frozen=True, kw_only=True)
class PackNetConfig(MethodConfig):
    """How much each phase gives back, and how long it trains what it keeps."""

    flags = {"I": "yes", "B": "yes", "F": "weights of earlier domains"}
    not_negative = ("owner",)

    prune: float | tuple[float, ...] = 0.5
    """Share of its weights that a phase sets to zero and leaves to later ones, in [0, 1), layer by
    layer; one number, or one per phase (0 for the last: nobody comes after it)."""

    retrain: Annotated[float, Gt(0.0), Lt(1.0)] = 0.25
    """Share of a phase's steps after pruning, with a learning-rate curve of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.prune if isinstance(self.prune, tuple) else (self.prune,)
        for share in shares:
            if not 0.0 <= share < 1.0:
                raise ValueError(f"prune must be >= 0 and < 1, got {share}")

    def share(self, phase: int) -> float:
        """What a phase prunes of its own weights."""
        return self.prune[phase] if isinstance(self.prune, tuple) else self.prune

    def check(self, run: RunFacts) -> None:
        if run.joint:
            raise ValueError(
                "it packs one domain after the other, and phases.joint trains all at once. Leave "
                "out one of the two."
            )
        if isinstance(self.prune, tuple) and len(self.prune) != run.num_phases:
            raise ValueError(
                f"prune has {len(self.prune)} shares for {run.num_phases} phases; give one number, "
                "or one per phase"
            )
        if not run.dense and run.role == "update":
            raise ValueError(
                "topology.role=update keeps weights that take part and belong to no phase. Use "
                "role topology."
            )
        if run.freezing:
            raise ValueError(
                f"{' and '.join(run.freezing)} freezes weights too, and what both leave free is "
                "not what either means. Take one of them."
            )
        if run.rewires:
            raise ValueError(
                "a method of the run moves live weights, and a weight that belongs to a phase "
                f"stays. Leave out one of {', '.join(run.others)}."
            )

    def check_layers(
        self, live: Mapping[str, int], num_phases: int, layers: Sequence[LayerShape]
    ) -> None:
        for name, free in live.items():
            counts = [free]
            for phase in range(num_phases):
                counts.append(round(self.share(phase) * counts[-1]))
                if counts[phase] == counts[phase + 1]:
                    raise ValueError(
                        f"prune={self.prune}: {name} has {free} live weights, of which phase "
                        f"{phase} of {num_phases} would get none (free before each phase: "
                        f"{', '.join(map(str, counts[:-1]))}). Raise topology.density, prune "
                        "another share, or train fewer phases."
                    )

    def memory(self, rank: RankSizes) -> MethodMemory:
        return MethodMemory(beside=2 * rank.slices + rank.held)  # the owner of each, and holds

    def stages(self) -> Sequence[StageConfig]:
        return (
            StageConfig(name="train", share=1.0 - self.retrain),
            StageConfig(name=RETRAIN, share=self.retrain),
        )
