"""Options of the methods that give each domain its own part of a sparse network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.methods.dst.clock import Clock, ahead, cosine
from sparsecl.methods.dst.config import RewireConfig, gradient_memory
from sparsecl.methods.dst.work import Tally, dense_gradients
from sparsecl.methods.facts import MethodMemory, RunFacts
from sparsecl.methods.work import MethodWork, Moment, RunWork
from sparsecl.sparse.sizes import RankSizes
from sparsecl.topology.layer import LayerShape


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


HIDDEN = ("up", "gate", "down")
"""Jobs of the linears that hidden units are between."""


@dataclass(frozen=True, kw_only=True)
class AfafConfig(IsolatedConfig):
    """How many hidden units and links a domain gets, and how its links are found."""

    flags = {
        **IsolatedConfig.flags,
        "X": "as `dst_cl`, and one for each weight of the feed-forward parts",
        "C": "a few passes over the weights of the feed-forward parts, and more links",
    }
    not_negative = (*IsolatedConfig.not_negative, "scores")

    every: Annotated[int, Ge(1)] = 25
    """Optimizer steps between rewires; an epoch in the public code."""

    drop_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.2
    """Share of the new links of a matrix that is replaced."""

    allocate: Annotated[float, Gt(0.0), Le(1.0)] = 0.5
    """Share of the hidden units between which a later domain gets new links. The public code has
    0.2 to 0.7, by the kind of layer."""

    reuse: Annotated[float, Ge(0.0), Le(1.0)] = 0.3
    """Share of the allocated units that are fixed ones."""

    reuse_from: Annotated[int, Ge(1)] = 1
    """The first phase that re-uses units; the public code has 1 or 3, by the stream."""

    fix: Annotated[float, Ge(0.0), Le(1.0)] = 0.3
    """Share of a phase's free units that is fixed when it ends."""

    links: Annotated[float, Gt(0.0)] = 1.0
    """New links of a matrix in a later phase, as a share of those that it began the run with."""

    first_block: Annotated[int, Ge(0)] = 0
    """Blocks below this one get no new links after the first phase."""

    sequences: Annotated[int, Ge(1)] = 16
    """Of a new domain, from which it is read which fixed units matter to it."""

    def num_units(self, phase: int, num_units: int, num_fixed: int) -> tuple[int, int]:
        """How many fixed and how many free units a later phase gets, of so many."""
        num = round(self.allocate * num_units)
        again = min(round(self.reuse * num), num_fixed) if phase >= self.reuse_from else 0
        return again, max(1, num - again)

    def check(self, run: RunFacts) -> None:
        super().check(run)
        for layer in run.layers:
            if layer.kind == "up":
                self._check_units(layer.out_features, run.num_phases)
        blocks = sum(layer.kind == "up" for layer in run.layers)
        if run.layers and self.first_block >= blocks:
            raise ValueError(
                f"first_block={self.first_block}: the model has {blocks} blocks, so later domains "
                f"would train nothing; at most {blocks - 1}"
            )

    def _check_units(self, num_units: int, num_phases: int) -> None:
        fixed = round(self.fix * num_units)
        for phase in range(1, num_phases):
            _, new = self.num_units(phase, num_units, fixed)
            if new > num_units - fixed:
                raise ValueError(
                    f"allocate={self.allocate}: phase {phase} of {num_phases} needs {new} free "
                    f"hidden units of each block, and of {num_units} {num_units - fixed} are left. "
                    "Lower allocate or fix, raise reuse, or train fewer phases."
                )
            fixed += round(self.fix * new)

    def check_layers(
        self, live: Mapping[str, int], num_phases: int, layers: Sequence[LayerShape]
    ) -> None:
        block = 0
        for layer in layers:
            if layer.kind in ("gate", "up") and block >= self.first_block:
                self._check_cells(layer, live[layer.name], num_phases)
            block += layer.kind == "down"

    def _check_cells(self, layer: LayerShape, live: int, num_phases: int) -> None:
        """The links that lead to units, where cells are scarcest; as many as there will be in the
        mean over the draws of units."""
        num, wanted = layer.out_features, max(1, round(self.links * live))
        fixed, taken = round(self.fix * num), live / num
        for phase in range(1, num_phases):
            _, new = self.num_units(phase, num, fixed)
            left = new * (layer.in_features - taken)
            if wanted > left:
                raise ValueError(
                    f"links={self.links:g}: phase {phase} of {num_phases} adds {wanted} links to "
                    f"{layer.name}, and about {left:.0f} cells are left between its units by then. "
                    "Raise allocate, lower links or topology.density, or train fewer phases."
                )
            own = round(self.fix * new)
            free = max(1, num - fixed - own)
            # Links of a free unit: those of the units that are fixed now are gone with them.
            taken += wanted * (1.0 - own / new) / free
            fixed += own

    def memory(self, rank: RankSizes) -> MethodMemory:
        slices = sum(rank.slices_by_kind.get(kind, 0) for kind in HIDDEN)
        units = sum(layer.out_features for layer in rank.layers if layer.kind == "up")
        cells = sum(layer.num_cells for layer in rank.layers if layer.kind in HIDDEN)
        # Scores; in a step gradients and weights before it; at rewires scores as matrices. And what
        # the tap of each group has room for (sparse/units.py).
        own = MethodMemory(beside=4 * slices, update=8 * slices, host=4 * cells, kept=24 * units)
        return super().memory(rank) + own

    def work(self, run: RunWork) -> MethodWork:
        tally = Tally(run)
        ends = [place for place, layer in enumerate(run.layers) if layer.kind == "down"]
        first = ends[self.first_block - 1] + 1 if self.first_block else 0
        grown = [
            max(1, round(self.links * layer.live))
            for place, layer in enumerate(run.layers)
            if layer.kind in HIDDEN and place >= first
        ]
        for at in run.moments():
            tally.live = run.live + at.phase * sum(grown)
            tally.step()
        return tally.result()


@dataclass(frozen=True, kw_only=True)
class SparclConfig(RewireConfig):
    """Which weights, gradients and sequences are left out. drop_fraction, schedule, during and end
    mean nothing here. Beside derpp or replay it is the published method."""

    flags = {"B": "yes", "X": "one for each weight", "C": "a little, at rewires"}
    not_negative = (*RewireConfig.not_negative, "open")
    needs_room = True

    every: Annotated[int, Ge(1)] = 25
    """TDM: optimizer steps between prunings; a tenth of a task in the public code. A phase of no
    more steps than that ends with what it began with."""

    band: Annotated[float, Ge(0.0), Lt(1.0)] = 0.01
    """TDM: by how much of a matrix's cells its live weights go above and below their number at the
    start; 0 leaves the graph alone."""

    gradient: Annotated[float, Ge(0.0)] = 0.5
    """TDM: weight of |gradient| in a weight's importance, beside |w|."""

    settle: Annotated[float, Ge(0.0), Le(1.0)] = 0.9
    """TDM: share of a phase's steps after which nothing grows."""

    keep: Annotated[float, Gt(0.0), Le(1.0)] = 0.8
    """DGM: share of the gradient that is kept; 1 keeps all. The published 0.2 of all cells at
    density 0.25 is 0.8 of the live ones."""

    denominator: Literal["live", "all"] = "live"
    """DGM: of what `keep` is a share: the live weights of a matrix, or all its cells, as in the
    public code."""

    refresh: Annotated[int, Ge(1)] = 30
    """DGM: optimizer steps between choices of what is kept."""

    remove: Annotated[float, Ge(0.0), Lt(1.0)] = 0.3
    """DDR, loss-based: share of a phase's sequences that is removed; 0 removes none."""

    remove_until: Annotated[float, Gt(0.0), Le(1.0)] = 0.4
    """DDR: share of a phase's steps in which they are removed."""

    portions: Annotated[int, Ge(1)] = 4
    """DDR: how often some are removed, at equal distances."""

    def check(self, run: RunFacts) -> None:
        super().check(run)
        if run.joint and self.remove:
            raise ValueError(
                f"remove={self.remove:g}: phases.joint mixes the texts of all domains, and a "
                "removed sequence is one of a single text. Set remove to 0."
            )
        if self.band and self.band >= min(run.density, 1.0 - run.density):
            raise ValueError(
                f"band={self.band:g} leaves nothing of a density of {run.density:g} "
                "(topology.density) below or above it; take a smaller one"
            )

    def num_kept(self, live: int, cells: int) -> int:
        """DGM: gradients of a matrix that are kept."""
        return min(live, round(self.keep * (live if self.denominator == "live" else cells)))

    def is_due(self, at: Moment) -> bool:
        return 0 < at.phase_step < at.phase_steps and at.phase_step % self.every == 0

    def settles(self, at: Moment) -> bool:
        """TDM: after a step, nothing grows any more."""
        return at.phase_step >= self.settle * at.phase_steps

    def removes(self, at: Moment) -> bool:
        """DDR: after a step, a portion goes."""
        end = self.remove_until * at.phase_steps
        times = (round(end * (k + 1) / self.portions) for k in range(self.portions))
        return at.phase_step in times

    def memory(self, rank: RankSizes) -> MethodMemory:
        kept = 4 * rank.sparse_slices if self.keep < 1.0 else 0
        sizes = 4 * rank.whole_cells if self.band else 0
        return super().memory(rank) + MethodMemory(beside=kept, host=sizes)

    def work(self, run: RunWork) -> MethodWork:
        tally, more = Tally(run), sum(round(self.band * layer.cells) for layer in run.layers)
        for at in run.moments():
            tally.live = run.live + (more if at.phase_step < self.every else 0)
            tally.step()
        return tally.result()
