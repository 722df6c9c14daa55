"""Options of the methods that keep a network able to learn."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from sparsecl.config import younger
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
    any_shape = True

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

    @property
    def about_units(self) -> bool:
        return True

    def check(self, run: RunFacts) -> None:
        check_renewal(self.adam_restart, run)
        if self.bias_transfer and run.paired_units:
            raise ValueError(
                "bias_transfer=true knows one mean of a unit, and under crelu a unit gives two "
                "activations; leave it out"
            )

    def memory(self, rank: RankSizes) -> MethodMemory:
        # Two running means, a centre and five sums of each unit; its age.
        age = MethodMemory(host=8 * num_units(rank))
        return renewal_memory(self.adam_restart, rank, 32) + age


def num_units(rank: RankSizes) -> int:
    """Hidden units of all feed-forward parts, global."""
    return sum(layer.out_features for layer in rank.layers if layer.kind == "up")


def check_renewal(restart: AdamRestartKind, run: RunFacts) -> None:
    """Raise ValueError if units cannot begin anew in this run."""
    check_adam_restart(restart, run)
    if run.freezing:
        raise ValueError(f"it writes to weights that {run.freezing[0]} freezes; take one")


def renewal_memory(restart: AdamRestartKind, rank: RankSizes, bytes_of_unit: int) -> MethodMemory:
    """What a method keeps whose units begin anew."""
    born = sum(rank.slices_by_kind.get(kind, 0) for kind in ("gate", "up", "down"))
    return MethodMemory(
        kept=bytes_of_unit * num_units(rank), beside=4 * born if restart == "per_weight" else 0
    )


@dataclass(frozen=True, kw_only=True)
class RedoConfig(MethodConfig):
    """Which hidden units begin anew, and how often."""

    flags = {"C": "a little, every `every` steps: sums over activations and weights"}
    networks = "many"
    any_shape = True

    every: Annotated[int, Ge(1)] = 100
    """Optimizer steps between two looks."""

    tau: Annotated[float, Ge(0.0), Lt(1.0)] = 0.1
    """Units begin anew whose mean |h| is at most tau times that of their layer; 0: only those that
    say nothing at all."""

    moments: Literal["reset", "keep"] = "reset"
    """reset: Adam's moments of what begins anew are zero, as in dopamine; keep: they stay, as in
    the code of Dohare et al."""

    adam_restart: AdamRestartKind = "global"
    """Adam's bias correction of what begins anew: with the run's count of steps, or its own."""

    @property
    def about_units(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moments == "keep" and self.adam_restart == "per_weight":
            raise ValueError(
                "adam_restart=per_weight counts from moments of zero, and moments=keep keeps them; "
                "use moments=reset"
            )

    def check(self, run: RunFacts) -> None:
        check_renewal(self.adam_restart, run)

    def memory(self, rank: RankSizes) -> MethodMemory:
        # A centre and five sums of each unit.
        return renewal_memory(self.adam_restart, rank, 24)


@dataclass(frozen=True, kw_only=True)
class ShrinkPerturbConfig(MethodConfig):
    """How much all matrices shrink, and how much noise comes in, at every step."""

    flags = {"C": "a little: a normal draw for each weight"}
    networks = "many"
    any_shape = True

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
class UpgdConfig(MethodConfig):
    """What is useful, and how much it is protected or perturbed."""

    flags = {"X": "one for each weight, or hidden unit", "C": "a normal draw for each weight"}
    networks = "many"

    utility: Literal["weight", "feature"] = "weight"
    """Of each weight; or of each hidden unit, for its incoming weights."""

    order: Literal[1, 2] = younger(1)
    """Of the expansion that utilities are: 1 from gradients, 2 with the diagonal of the Hessian
    (HesScale), on streams of images alone."""

    scope: Literal["global", "local"] = "global"
    """Utilities are divided by the largest of all, or by the norm of their row (feature: layer)."""

    scaling: Literal["code", "corrected"] = "corrected"
    """corrected: the largest is corrected by its age, as utilities are, and above zero; code: it is
    not, as in the public code. It is about scope global."""

    protecting: bool = True
    """Useful weights keep from the optimizer's step too; otherwise from the noise alone."""

    sigma: Annotated[float, Ge(0.0)] = 1.0e-3
    """Standard deviation of the noise of a step, times the learning rate."""

    beta: Annotated[float, Ge(0.0), Lt(1.0)] = 0.999
    """Of the running mean of utilities."""

    vectors: bool = False
    """Vectors (norms, biases) too; with `utility: feature` a unit's biases go with it anyway."""

    @property
    def about_units(self) -> bool:
        return self.utility == "feature"

    def check(self, run: RunFacts) -> None:
        if self.order == 2 and not run.curvature:
            raise ValueError(
                "order=2 needs the diagonal of the Hessian. HesScale gives it for linear layers "
                "and elementwise functions under a cross entropy, so for streams of images, and "
                "has no rule for attention and norms; use order=1"
            )
        if self.order == 2 and "dropout" in run.others:
            raise ValueError(
                "order=2 asks for the curvature of the whole network, and methods.dropout thins "
                "it; take one"
            )

    @property
    def active(self) -> bool:
        """It changes anything."""
        return self.protecting or self.sigma > 0

    def memory(self, rank: RankSizes) -> MethodMemory:
        if not self.active:
            return MethodMemory()
        # Masters before the step; places, draws and what is made of them, of one slice.
        update = 4 * rank.slices + 40 * rank.largest_slice
        if self.utility == "feature":
            down = rank.slices_by_kind.get("down", 0)
            return MethodMemory(kept=16 * num_units(rank), passing=4 * down, update=update)
        # And utilities with those of the step.
        return MethodMemory(beside=4 * rank.slices, update=update + 4 * rank.slices)


@dataclass(frozen=True, kw_only=True)
class DropoutConfig(MethodConfig):
    """How many hidden units are silent in training."""

    flags = {"C": "a draw and a product for each hidden unit and sequence"}
    networks = "one"

    p: Annotated[float, Ge(0.0), Lt(1.0)] = 0.1
    """Probability that a unit is silent for a sequence; 0 is plain training."""

    @property
    def about_units(self) -> bool:
        return True

    def memory(self, rank: RankSizes) -> MethodMemory:
        if not self.p:
            return MethodMemory()
        # A factor for each sequence and unit; places and draws of one layer.
        widest = max((one.out_features for one in rank.layers if one.kind == "up"), default=0)
        return MethodMemory(kept=rank.tokens // rank.context * (4 * num_units(rank) + 28 * widest))


@dataclass(frozen=True, kw_only=True)
class L1Config(MethodConfig):
    """How hard every weight is pulled, and to where."""

    flags = {"B": "`towards: start`", "X": "one for each weight, `towards: start`"}
    networks = "many"
    any_shape = True

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


@dataclass(frozen=True, kw_only=True)
class L2Config(MethodConfig):
    """How hard every weight is pulled to zero."""

    networks = "many"
    any_shape = True

    strength: Annotated[float, Ge(0.0)] = 1.0e-4
    """The gradient gains strength times the weight, before it is clipped; beside
    optimizer.weight_decay. 0 is plain training."""

    vectors: bool = False
    """Pull vectors (norms, biases) too."""

    @property
    def anchored(self) -> bool:
        """It keeps weights of an earlier moment."""
        return False

    def memory(self, rank: RankSizes) -> MethodMemory:
        # The distance of one slice.
        return MethodMemory(
            beside=4 * rank.slices if self.anchored else 0,
            passing=4 * rank.largest_slice if self.strength else 0,
        )


@dataclass(frozen=True, kw_only=True)
class L2InitConfig(L2Config):
    """How hard every weight is pulled to where it was at the start of the run."""

    flags = {"X": "one for each weight"}

    @property
    def anchored(self) -> bool:
        return self.strength > 0
