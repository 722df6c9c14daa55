"""Options of the continual-learning methods for dense networks; they take a sparse one too."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.methods.facts import MethodConfig, RunFacts


@dataclass(frozen=True, kw_only=True)
class EwcConfig(MethodConfig):
    """How strongly and in which form earlier weights are held."""

    flags = {"B": "yes", "X": "two for each weight"}
    not_negative = ("precision",)

    strength: Annotated[float, Ge(0.0)] = 1.0e4
    """lambda; depends on the problem, sweep 1e0..1e6. 0 is plain training, bit for bit."""

    variant: Literal["separate", "online"] = "separate"
    """One anchor per domain, or a decaying Fisher with the latest anchor."""

    gamma: Annotated[float, Ge(0.0), Le(1.0)] = 0.9
    """Decay of the old Fisher (online only)."""

    sequences: Annotated[int, Ge(1)] = 256
    """Training sequences of a phase over which its Fisher is averaged."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(MethodConfig):
    """How many earlier sequences are remembered, and how many are trained again."""

    flags = {"D": "yes", "C": "replayed sequences"}

    sequences: Annotated[int, Ge(1)] = 1024
    """Capacity of the memory, in training sequences of model.context tokens, over all ranks."""

    share: Annotated[float, Gt(0.0), Lt(math.inf)] = 0.25
    """Replayed / new sequences of a batch. share * batch.micro must be a whole number >= 1."""

    @property
    def replayed_share(self) -> float:
        return self.share

    def check(self, run: RunFacts) -> None:
        self.num_replayed(run.micro)

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
    def replayed_share(self) -> float:
        return self.share * sum(weight > 0.0 for weight in (self.alpha, self.beta))
