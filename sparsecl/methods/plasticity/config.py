"""Options of the methods that keep a network able to learn."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from sparsecl.methods.facts import (
    AdamRestartKind,
    MethodConfig,
    MethodMemory,
    RunFacts,
    check_adam_restart,
)
from sparsecl.sparse.sizes import RankSizes


@dataclass(frozen=True, kw_only=True)
class CbpConfig(MethodConfig):
    """Which hidden units begin anew, and how many."""

    flags = {"C": "a little: sums over activations and weights"}
    networks = "many"

    rate: Annotated[float, Ge(0.0), Le(1.0)] = 1.0e-4
    """rho: share of the mature units of a layer that begins anew at each step."""

    maturity: Annotated[int, Ge(0)] = 100
    """m: steps that a unit is left alone after it has begun."""

    decay: Annotated[float, Ge(0.0), Lt(1.0)] = 0.99
    """eta of the running means."""

    utility: Literal[
        "contribution",
        "zero_contribution",
        "adaptable_contribution",
        "feature_by_input",
        "weight",
        "adaptation",
        "random",
    ] = "contribution"
    """What makes a unit worth keeping, in means: |h| |w_out|; |h - mean h| |w_out|; the same by
    |w_in|; |h - mean h| by |w_in|; |w_out|; 1 by |w_in|; nothing."""

    accumulate: bool = True
    """Parts of a unit are saved up until they are one; otherwise one begins anew with their
    probability."""

    bias_transfer: bool = False
    """What a unit gave on average is added to the biases behind it, if the form has any."""

    adam_restart: AdamRestartKind = "global"
    """Adam's bias correction of what begins anew: with the run's count of steps, or its own."""

    def check(self, run: RunFacts) -> None:
        check_adam_restart(self.adam_restart, run)
        if run.freezing:
            raise ValueError(f"it writes to weights that {run.freezing[0]} freezes; take one")

    def memory(self, rank: RankSizes) -> MethodMemory:
        units = sum(layer.out_features for layer in rank.layers if layer.kind == "up")
        born = sum(rank.slices_by_kind.get(kind, 0) for kind in ("gate", "up", "down"))
        # Two running means, a centre and five sums of each unit; its age.
        return MethodMemory(
            kept=32 * units,
            host=8 * units,
            beside=4 * born if self.adam_restart == "per_weight" else 0,
        )


@dataclass(frozen=True, kw_only=True)
class ShrinkPerturbConfig(MethodConfig):
    """How much all matrices shrink, and how much noise comes in, at every step."""

    flags = {"C": "a little: a normal draw for each weight"}
    networks = "many"

    shrink: Annotated[float, Ge(0.0)] = 1.0e-4
    """lambda: a weight loses lr * lambda of itself at each step, beside optimizer.weight_decay."""

    sigma: Annotated[float, Ge(0.0)] = 1.0e-5
    """Standard deviation of the noise of a step; not times the learning rate."""

    vectors: bool = False
    """Perturb and shrink vectors (norms, biases) too."""

    def memory(self, rank: RankSizes) -> MethodMemory:
        # Places, draws and noise of one slice.
        return MethodMemory(update=28 * rank.largest_slice if self.sigma else 0)


@dataclass(frozen=True, kw_only=True)
class L1Config(MethodConfig):
    """How hard every weight is pulled, and to where."""

    flags = {"B": "`towards: start`", "X": "one for each weight, `towards: start`"}
    networks = "many"

    strength: Annotated[float, Ge(0.0)] = 0.1
    """lambda. proximal: a weight comes lr * lambda nearer at each step; under Adam, whose steps are
    about lr long, 1 lets nothing go that is not pulled the same way all the time."""

    towards: Literal["zero", "start"] = "zero"
    """zero: the L1 norm of the weights; start: of their distance from the start of the phase."""

    form: Literal["proximal", "subgradient"] = "proximal"
    """proximal: soft thresholding after the optimizer's step, with exact zeros; subgradient: lambda
    times the sign, added to the gradient before it is clipped."""

    vectors: bool = False
    """Pull vectors (norms, biases) too."""

    @property
    def anchored(self) -> bool:
        """It keeps the weights of the start of a phase."""
        return self.towards == "start" and self.strength > 0

    def memory(self, rank: RankSizes) -> MethodMemory:
        # The distance of one slice, its size and its sign.
        return MethodMemory(
            beside=4 * rank.slices if self.anchored else 0,
            update=12 * rank.largest_slice if self.strength else 0,
        )
