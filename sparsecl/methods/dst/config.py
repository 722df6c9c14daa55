"""Options of the methods that move the topology (dynamic sparse training)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.config import younger
from sparsecl.methods.dst import work
from sparsecl.methods.dst.clock import ahead, is_due
from sparsecl.methods.facts import (
    AdamRestartKind,
    MethodConfig,
    MethodMemory,
    RunFacts,
    check_adam_restart,
)
from sparsecl.methods.work import MethodWork, RunWork
from sparsecl.sparse.sizes import RankSizes

Scope = Literal["layer", "global"]


@dataclass(frozen=True, kw_only=True)
class RewireConfig(MethodConfig):
    """What moves the topology has these options, and needs weights that can move one by one."""

    flags = {"C": "a little, at rewires"}
    rewires = True
    not_negative = ("born",)
    needs_room: ClassVar[bool] = False
    """It chooses over whole matrices or changes counts, which packed storage has no room for."""

    every: Annotated[int, Ge(1)] = 100
    """Optimizer steps between rewires."""

    drop_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.3
    """Share of the live weights of a layer that is replaced."""

    schedule: Literal["cosine", "constant"] = younger("constant")
    """Of the drop fraction: down to 0 along a cosine until the graph stops, or the same."""

    during: Literal["all", "first", "after_switch"] = younger("all")
    """When the graph moves. all: the whole run; first: the first phase, so that later ones have a
    fixed topology found by training; after_switch: `switch_steps` at the start of every phase."""

    end: Annotated[float, Gt(0.0), Le(1.0)] = younger(1.0)
    """Share of the steps of the run (with during first: of the first phase) after which the graph
    stays as it is."""

    switch_steps: Annotated[int, Ge(1)] = younger(100)
    """With during after_switch: steps after which the graph stays as it is until the next phase."""

    adam_restart: AdamRestartKind = "global"
    """Adam's bias correction for new weights counts from the run's first step, or from each one's
    own (4 bytes a weight)."""

    def check(self, run: RunFacts) -> None:
        if run.dense:
            raise ValueError("a dense model has no topology to move; give it a topology.kind")
        if run.role == "update":
            raise ValueError(
                "topology.role=update keeps absent weights at their values; use role topology"
            )
        if run.tiled:
            raise ValueError(
                "single weights move, and tiles would fall apart; use topology.backend dense or csr"
            )
        if self.needs_room and run.storage == "packed":
            raise ValueError(
                "it chooses over whole matrices, and packed storage keeps the count of each slice; "
                "use topology.storage=masked"
            )
        if run.freezing:
            raise ValueError(
                f"{run.freezing[0]} freezes weights, and what is frozen cannot go; leave one "
                "of them out"
            )
        check_adam_restart(self.adam_restart, run)

    def memory(self, rank: RankSizes) -> MethodMemory:
        born = 4 * rank.sparse_slices if self.adam_restart == "per_weight" else 0
        # The step of birth of every cell, for what a run tells of its graph.
        return MethodMemory(beside=born, host=4 * rank.whole_cells)


def dense_gradients(rank: RankSizes) -> MethodMemory:
    """Of all layers at once, for the length of a step that shows them."""
    return MethodMemory(passing=4 * rank.cells)


@dataclass(frozen=True, kw_only=True)
class SetConfig(RewireConfig):
    """Zeta is `drop_fraction`."""

    drop: Literal["per_sign", "magnitude", "mest"] = younger("per_sign")
    """per_sign: the share of the smallest positive and of the smallest negative weights (as
    published); magnitude: the smallest |w|; mest: the smallest |w| + mest_gradient |gradient|."""

    mest_gradient: Annotated[float, Ge(0.0)] = younger(1.0)
    """Weight of the gradient with drop mest."""

    def memory(self, rank: RankSizes) -> MethodMemory:
        extra = dense_gradients(rank) if self.drop == "mest" else MethodMemory()
        return super().memory(rank) + extra

    def work(self, run: RunWork) -> MethodWork:
        if self.drop != "mest":
            return MethodWork()
        return work.dense_gradients(run, lambda at: is_due(self, ahead(at)))


@dataclass(frozen=True, kw_only=True)
class RiglConfig(RewireConfig):
    """Grows where the gradient is large."""

    flags = {"C": "dense gradients at rewires, which take the place of a step"}

    schedule: Literal["cosine", "constant"] = "cosine"
    end: Annotated[float, Gt(0.0), Le(1.0)] = 0.75

    def memory(self, rank: RankSizes) -> MethodMemory:
        return super().memory(rank) + dense_gradients(rank)

    def work(self, run: RunWork) -> MethodWork:
        return work.rigl(self, run)


@dataclass(frozen=True, kw_only=True)
class SnfsConfig(RewireConfig):
    """Grows where the running mean of the gradient is large."""

    flags = {"X": "one for each cell, absent ones too", "C": "dense gradients at every step"}
    needs_room = True

    schedule: Literal["cosine", "constant"] = "cosine"
    end: Annotated[float, Gt(0.0), Le(1.0)] = 0.75

    decay: Annotated[float, Ge(0.0), Lt(1.0)] = 0.9
    """Of the running mean of the dense gradient."""

    def memory(self, rank: RankSizes) -> MethodMemory:
        means = MethodMemory(host=4 * rank.whole_cells)
        return super().memory(rank) + dense_gradients(rank) + means

    def work(self, run: RunWork) -> MethodWork:
        return work.dense_gradients(run, lambda at: True)


@dataclass(frozen=True, kw_only=True)
class GranetConfig(RewireConfig):
    """Prunes along a cubic, and replaces some of what is left at every step of it."""

    flags = {"C": "dense gradients at rewires; more weights than in the end until `prune_end`"}
    needs_room = True

    drop_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.5
    schedule: Literal["cosine", "constant"] = "cosine"

    final_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.005
    """Where the cosine of the drop fraction ends."""

    final_density: Annotated[float | None, Gt(0.0), Le(1.0)] = None
    """Live weights / all weights of the masked matrices in the end; topology.density is that of
    the start. null: a tenth of the start."""

    prune_end: Annotated[float, Gt(0.0), Le(1.0)] = 0.6875
    """Share of the steps in which the graph moves until the final density (110 of 160 epochs)."""

    scope: Scope = "global"
    """Of pruning: the smallest |w| of all matrices together, or of each by itself."""

    exact_final: bool = True
    """false: stop one pruning early, as the public code does; the density then ends above the
    final one."""

    def check(self, run: RunFacts) -> None:
        super().check(run)
        check_final_density(self.final_density, run)

    def memory(self, rank: RankSizes) -> MethodMemory:
        return super().memory(rank) + dense_gradients(rank)

    def work(self, run: RunWork) -> MethodWork:
        return work.granet(self, run)


@dataclass(frozen=True, kw_only=True)
class DeepRConfig(RewireConfig):
    """A weight that would change its sign goes, and a random one comes. drop_fraction and schedule
    mean nothing here."""

    flags = {
        "X": "a sign for each cell",
        "C": "a normal draw for each weight at every step, and the search for lost ones",
    }
    needs_room = True

    every: Annotated[int, Ge(1)] = 1
    """Optimizer steps between searches for lost weights, which stay at zero until then."""

    l1: Annotated[float, Ge(0.0)] = 1e-5
    """Pull of a weight to zero, times the learning rate at every step."""

    noise: Annotated[float, Ge(0.0)] = 1e-5
    """Standard deviation of a weight's random walk, times the learning rate at every step."""

    scope: Scope = "layer"
    """Where lost weights come back: in the layer that lost them, or in all layers by their size and
    density at the start."""

    variant: Literal["hard", "soft"] = "hard"
    """hard: the count of live weights is kept. soft: absent ones walk at random too, and live as
    soon as they are above zero; no bound on the count."""

    def check(self, run: RunFacts) -> None:
        super().check(run)
        if self.variant == "soft" and not (self.l1 and self.noise):
            raise ValueError("variant=soft needs l1 and noise above 0: its floor is their quotient")

    def memory(self, rank: RankSizes) -> MethodMemory:
        kept = 8 if self.variant == "soft" else 4  # signs, and where absent weights are
        own = MethodMemory(update=28 * rank.largest_slice, host=kept * rank.whole_cells)
        return super().memory(rank) + own


@dataclass(frozen=True, kw_only=True)
class HebbConfig(RewireConfig):
    """What grows by the paths of the graph has these options."""

    needs_room = True

    score: Literal["ch3_l3p", "ch2_l3p", "ch3_l3n", "ch2_l3n"] = "ch3_l3n"
    """Cannistraci-Hebb score of an absent weight: ch2 or ch3, over each path of length 3 (l3p,
    slow in large layers) or in matrix form (l3n)."""

    percolate: bool = True
    """Before growth, drop what leads to a hidden unit that nothing reads, or from one that nothing
    feeds."""

    @property
    def by_head(self) -> bool:
        """Heads of q, k and v choose for themselves."""
        return False


@dataclass(frozen=True, kw_only=True)
class ChtConfig(HebbConfig):
    """Cannistraci-Hebb training: the smallest go, the highest scores come."""

    score: Literal["ch3_l3p", "ch2_l3p", "ch3_l3n", "ch2_l3n"] = "ch3_l3p"

    stop_overlap: Annotated[float, Gt(0.0), Le(1.0)] = 0.9
    """A layer stays as it is once more than this share of what it dropped has come back."""

    def work(self, run: RunWork) -> MethodWork:
        return work.cht(self, run)


@dataclass(frozen=True, kw_only=True)
class ChtsConfig(HebbConfig):
    """CHTs; with `final_density` CHTss."""

    flags = {"C": "scores at rewires, which take the place of a step"}

    schedule: Literal["cosine", "constant"] = "cosine"
    end: Annotated[float, Gt(0.0), Le(1.0)] = 0.75
    score: Literal["ch3_l3p", "ch2_l3p", "ch3_l3n", "ch2_l3n"] = "ch2_l3n"
    percolate: bool = False

    removal: Literal["magnitude", "relative"] = "relative"
    """What a weight is kept for: |w|, or its share of its row's and of its column's sum of |w|."""

    temperature: tuple[float, float] = (1.0, 9.0)
    """At the start and at the end: weights are kept at random, by score^temperature; 0 = evenly."""

    growth: Literal["sampled", "top"] = "sampled"
    """At random by the scores, or the highest."""

    final_density: Annotated[float | None, Gt(0.0), Le(1.0)] = None
    """Live weights / all weights of the masked matrices in the end (CHTss); topology.density is
    that of the start. null: the density stays."""

    prune_end: Annotated[float, Gt(0.0), Le(1.0)] = 0.8
    """Share of the steps in which the graph could move (the run, or the first phase) until the
    final density."""

    em_s: tuple[float, float] | None = younger(None)
    """Live weights beyond the target while the graph explores (EM_S), as shares of all weights of
    the masked matrices: up to 60 % of the rewiring, and up to its last rewire, which leaves none;
    0.05 and 0.025 in the public code. topology.density is the target plus the first. A rewire then
    removes down to the target: drop_fraction and schedule mean nothing."""

    per_head: bool = younger(False)
    """Each head's rows of q, k and v lose and gain weights by themselves."""

    @property
    def by_head(self) -> bool:
        return self.per_head

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.em_s is not None and not 0.0 <= self.em_s[1] <= self.em_s[0] < 1.0:
            raise ValueError(f"em_s must be two shares in [0, 1) that do not rise, got {self.em_s}")
        if self.em_s is not None and self.final_density is not None:
            raise ValueError(
                "em_s holds a surplus above a target, and final_density lets the density fall; "
                "leave one of the two out"
            )
        if min(self.temperature) < 0.0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")

    def check(self, run: RunFacts) -> None:
        super().check(run)
        check_final_density(self.final_density, run)
        if self.em_s is not None and self.em_s[0] >= run.density:
            raise ValueError(
                f"em_s={list(self.em_s)} leaves no target: the density of the start, "
                f"{run.density:g} (topology.density), is the target plus {self.em_s[0]:g}"
            )

    def work(self, run: RunWork) -> MethodWork:
        return work.chts(self, run)


def check_final_density(density: float | None, run: RunFacts) -> None:
    """Raise ValueError if it is not below that of the start."""
    if density is not None and density > run.density:
        raise ValueError(
            f"final_density={density:g} is above the density of the start, {run.density:g} "
            "(topology.density); it can only fall"
        )
