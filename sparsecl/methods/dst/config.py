"""Options of the methods that move the topology (dynamic sparse training)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.config import younger
from sparsecl.methods.dst.clock import Timing, ahead, cosine, cubic, sigmoid
from sparsecl.methods.dst.work import Tally, dense_gradients, left_of
from sparsecl.methods.facts import (
    AdamRestartKind,
    MethodConfig,
    MethodMemory,
    RunFacts,
    check_adam_restart,
)
from sparsecl.methods.work import MethodWork, Moment, RunWork
from sparsecl.sparse.sizes import RankSizes

Scope = Literal["layer", "global"]


@dataclass(frozen=True, kw_only=True)
class RewireConfig(Timing, MethodConfig):
    """What moves the topology has these options, and needs weights that can move one by one."""

    flags = {"C": "a little, at rewires"}
    rewires = True
    not_negative = ("born",)
    needs_room: ClassVar[bool] = False
    """It chooses over whole matrices or changes counts, which packed storage has no room for."""

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
                "single weights move, and tiles would fall apart; use topology.backend dense, "
                "native or csr"
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


def check_gradients(run: RunFacts) -> None:
    if not run.dense_gradients:
        raise ValueError(
            "it asks for gradients of absent weights, which networks with a norm do not show; use "
            "learner.norm=none"
        )


def gradient_memory(rank: RankSizes) -> MethodMemory:
    """Of all layers at once, for the length of a step that shows them."""
    return MethodMemory(passing=4 * rank.cells)


@dataclass(frozen=True, kw_only=True)
class SetConfig(RewireConfig):
    """Zeta is `drop_fraction`."""

    networks = "many"

    drop: Literal["per_sign", "magnitude", "mest"] = younger("per_sign")
    """per_sign: the share of the smallest positive and of the smallest negative weights (as
    published); magnitude: the smallest |w|; mest: the smallest |w| + mest_gradient |gradient|."""

    mest_gradient: Annotated[float, Ge(0.0)] = younger(1.0)
    """Weight of the gradient with drop mest."""

    def check(self, run: RunFacts) -> None:
        super().check(run)
        if self.drop == "mest":
            check_gradients(run)

    def memory(self, rank: RankSizes) -> MethodMemory:
        extra = gradient_memory(rank) if self.drop == "mest" else MethodMemory()
        return super().memory(rank) + extra

    def work(self, run: RunWork) -> MethodWork:
        if self.drop != "mest":
            return MethodWork()
        return dense_gradients(run, lambda at: self.is_due(ahead(at)))


@dataclass(frozen=True, kw_only=True)
class RiglConfig(RewireConfig):
    """Grows where the gradient is large."""

    flags = {"C": "dense gradients at rewires, which take the place of a step"}
    networks = "many"

    schedule: Literal["cosine", "constant"] = "cosine"
    end: Annotated[float, Gt(0.0), Le(1.0)] = 0.75

    def check(self, run: RunFacts) -> None:
        super().check(run)
        check_gradients(run)

    def memory(self, rank: RankSizes) -> MethodMemory:
        return super().memory(rank) + gradient_memory(rank)

    def work(self, run: RunWork) -> MethodWork:
        last = -1

        def is_shown(at: Moment) -> bool:
            nonlocal last
            due = self.is_due_in_place(at, last)
            last = at.step if due else last
            return due

        return dense_gradients(run, is_shown)


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
        return super().memory(rank) + gradient_memory(rank) + means

    def work(self, run: RunWork) -> MethodWork:
        return dense_gradients(run, lambda at: True)


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
        return super().memory(rank) + gradient_memory(rank)

    def work(self, run: RunWork) -> MethodWork:
        tally, first = Tally(run), run.live / run.cells
        final = 0.1 * first if self.final_density is None else self.final_density
        for at in run.moments():
            due = self.is_due(ahead(at))
            tally.step(gradient=due)
            done = self.pruned_share(ahead(at)) if due else None
            if done is None:
                continue
            density = cubic(first, final, done)
            each = sum(run.shrunk(density / first))
            tally.live = round(density * run.cells) if self.scope == "global" else each
        return tally.result()

    def pruned_share(self, at: Moment) -> float | None:
        """Share of the prunings that one now completes, at a moment at which the graph moves; None
        when there is none to do."""
        now = self.clock(at)
        assert now is not None
        total = int(self.prune_end * now.end) // self.every
        done = now.step // self.every
        last = total if self.exact_final else total - 1
        return done / total if done <= last else None

    def fraction(self, at: Moment) -> float:
        now = self.clock(at)
        if now is None or self.schedule == "constant":
            return super().fraction(at)
        height = self.drop_fraction - self.final_fraction
        return self.final_fraction + height * cosine(now.step, now.end)


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


@dataclass(frozen=True, kw_only=True)
class ChtConfig(HebbConfig):
    """Cannistraci-Hebb training: the smallest go, the highest scores come."""

    score: Literal["ch3_l3p", "ch2_l3p", "ch3_l3n", "ch2_l3n"] = "ch3_l3p"

    stop_overlap: Annotated[float, Gt(0.0), Le(1.0)] = 0.9
    """A layer stays as it is once more than this share of what it dropped has come back."""

    def work(self, run: RunWork) -> MethodWork:
        tally = Tally(run)
        for at in run.moments():
            tally.step()
            if self.is_due(ahead(at)):
                live = [layer.live for layer in run.layers]
                left = left_of(live, self.fraction(ahead(at)))
                tally.score(self.score, left, live, always=self.percolate)
        return tally.result()


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
        tally, first, last = Tally(run), run.live / run.cells, -1
        live = [layer.live for layer in run.layers]
        for at in run.moments():
            tally.step()
            if not self.is_due_in_place(at, last):
                continue
            last, done, left = at.step, self.pruned_share(at), None
            if done is not None and self.final_density is not None:
                live = run.shrunk(sigmoid(first, self.final_density, done) / first)
            if self.em_s is not None:
                low, high = self.em_s_shares(at, first)
                left, live = list(map(min, live, run.shrunk(low))), run.shrunk(high)
            elif self.clock(at) is not None:
                left = left_of(live, self.fraction(at))
            if left is not None:
                by_head, always = self.per_head, self.percolate
                tally.score(self.score, left, live, always=always, by_head=by_head)
            tally.live = sum(live)
        return tally.result()

    def is_due_in_place(self, at: Moment, last: int) -> bool:
        """Pruning goes on where the graph does not move any more, and a surplus goes also where the
        step that was to take it away was discarded."""
        now = self.stretch(at)
        if now is None or now.step <= now.end:
            return super().is_due_in_place(at, last)
        if self.em_s is not None:
            return last >= now.begin and last + self.every <= now.begin + now.end
        return self.pruned_share(at) is not None and at.step >= last + self.every

    def pruned_share(self, at: Moment) -> float | None:
        """Share of the prunings that one now completes; None when there is none to do."""
        step, span = at.step, at.total_steps
        if self.during != "all":
            step, span = at.phase_step, at.phase_steps
        total = int(self.prune_end * span) // self.every
        done = step // self.every
        first = self.during == "all" or at.phase == 0
        if self.final_density is None or not first or done > total:
            return None
        return done / total if total else 1.0

    def surplus(self, at: Moment) -> float:
        """What lives beyond the target after a rewire at this moment, as a share of all cells."""
        now = self.clock(at)
        if self.em_s is None or now is None or now.step + self.every > now.end:
            return 0.0
        return self.em_s[0 if now.step <= 0.6 * now.end else 1]

    def em_s_shares(self, at: Moment, density: float) -> tuple[float, float]:
        """Of the live weights of a start at `density`: what a rewire at this moment removes down
        to, and what it grows to."""
        assert self.em_s is not None
        target = density - self.em_s[0]
        return target / density, (target + self.surplus(at)) / density


def check_final_density(density: float | None, run: RunFacts) -> None:
    """Raise ValueError if it is not below that of the start."""
    if density is not None and density > run.density:
        raise ValueError(
            f"final_density={density:g} is above the density of the start, {run.density:g} "
            "(topology.density); it can only fall"
        )
