"""Options of the methods that give each domain its own part of a sparse network."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from sparsecl.methods.dst.clock import Clock, ahead, cosine
from sparsecl.methods.dst.config import RewireConfig, gradient_memory
from sparsecl.methods.dst.work import dense_gradients
from sparsecl.methods.facts import MethodMemory, RunFacts
from sparsecl.methods.work import MethodWork, Moment, RunWork
from sparsecl.sparse.sizes import RankSizes


@dataclass(frozen=True, kw_only=True)
class IsolatedConfig(RewireConfig):
    """A sub-network for each domain. With during all, the graph moves in each phase, and the
    schedule runs over each."""

    flags = {
        "I": "yes",
        "B": "yes",
        "F": "weights of earlier domains",
        "X": "one for each cell, absent ones too, and a bit for each cell and domain",
    }
    needs_room = True

    def check(self, run: RunFacts) -> None:
        super().check(run)
        if run.joint:
            raise ValueError(
                "it gives one domain after the other its part, and phases.joint trains all at "
                "once. Leave out one of the two."
            )

    def stretch(self, at: Moment) -> Clock | None:
        if self.during != "all":
            return super().stretch(at)
        begin = at.step - at.phase_step
        return Clock(at.phase_step, int(self.end * at.phase_steps), begin, at.phase_steps)

    def is_due(self, at: Moment) -> bool:
        """Not after a phase's last step: what has grown would be frozen untrained."""
        return at.phase_step < at.phase_steps and super().is_due(at)

    def memory(self, rank: RankSizes) -> MethodMemory:
        # What holds keep; frozen values, and a bit for each cell and phase.
        bits = rank.num_phases * (-(-rank.whole_cells // 8))
        own = MethodMemory(beside=rank.held, host=4 * rank.whole_cells + bits)
        return super().memory(rank) + own


@dataclass(frozen=True, kw_only=True)
class DstClConfig(IsolatedConfig):
    """How the graph of a domain is found."""

    flags = {**IsolatedConfig.flags, "C": "a little, at rewires; dense gradients with some growths"}

    every: Annotated[int, Ge(1)] = 25
    """Optimizer steps between rewires. The public code has 400 batches, a 39th of its task."""

    drop_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.5

    final_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.005
    """Where the cosine of the drop fraction ends."""

    schedule: Literal["cosine", "constant"] = "cosine"

    drop: Literal["magnitude", "per_sign", "gradient"] = "magnitude"
    """What goes: the smallest |w|; the smallest of each sign, as in SET; the smallest
    (w gradient)^2."""

    growth: Literal["random", "unfired", "gradient", "momentum"] = "random"
    """What comes: any absent weight; one that has never lived; where the dense gradient is largest,
    or its running mean over the root of that of its squares."""

    def check(self, run: RunFacts) -> None:
        super().check(run)
        if run.live_products:
            raise ValueError(
                "a domain is tested with weights that are absent from a later graph, and this "
                "backend multiplies by live ones; use topology.backend=dense"
            )

    def fraction(self, at: Moment) -> float:
        now = self.clock(at)
        if now is None or self.schedule == "constant":
            return super().fraction(at)
        height = self.drop_fraction - self.final_fraction
        return self.final_fraction + height * cosine(now.step, now.end)

    @property
    def shows_gradients(self) -> bool:
        """Steps that rewire show the gradient of all cells."""
        return self.drop == "gradient" or self.growth == "gradient"

    def memory(self, rank: RankSizes) -> MethodMemory:
        means = 8 * rank.whole_cells if self.growth == "momentum" else 0
        lived = -(-rank.whole_cells // 8) if self.growth == "unfired" else 0
        shown = self.growth == "momentum" or self.shows_gradients
        passing = gradient_memory(rank) if shown else MethodMemory()
        return super().memory(rank) + passing + MethodMemory(host=means + lived)

    def work(self, run: RunWork) -> MethodWork:
        always = self.growth == "momentum"

        def is_shown(at: Moment) -> bool:
            return always or (self.shows_gradients and self.is_due(ahead(at)))

        return dense_gradients(run, is_shown)
