"""Options of the methods that move the topology (dynamic sparse training)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sparsecl.methods.facts import (
    AdamRestartKind,
    MethodConfig,
    MethodMemory,
    RunFacts,
    check_adam_restart,
)
from sparsecl.sparse.sizes import RankSizes


@dataclass(frozen=True, kw_only=True)
class RewireConfig(MethodConfig):
    """What drops and grows has these options, and needs weights that can move one by one."""

    flags = {"C": "a little, at rewires"}
    rewires = True
    not_negative = ("born",)

    every: Annotated[int, Ge(1)] = 100
    """Optimizer steps between rewires, in all phases."""

    drop_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.3
    """Share of the live weights of a layer that is replaced."""

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
        if run.freezing:
            raise ValueError(
                f"{run.freezing[0]} freezes weights, and what is frozen cannot go; leave one "
                "of them out"
            )
        check_adam_restart(self.adam_restart, run)

    def memory(self, rank: RankSizes) -> MethodMemory:
        born = 4 * rank.sparse_slices if self.adam_restart == "per_weight" else 0
        return MethodMemory(beside=born)


@dataclass(frozen=True, kw_only=True)
class SetConfig(RewireConfig):
    """How often and how much of each layer is rewired; zeta is `drop_fraction`, of the positive and
    of the negative weights apart."""


@dataclass(frozen=True, kw_only=True)
class RiglConfig(RewireConfig):
    """How often, how long and how much of each layer is rewired."""

    flags = {"C": "dense gradients at rewires, which take the place of a step"}

    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the drop fraction from step 0 to the end: down to 0 along a cosine, or the same."""

    end: Annotated[float, Gt(0.0), Le(1.0)] = 0.75
    """Share of all steps of the run after which the graph stays as it is."""

    def memory(self, rank: RankSizes) -> MethodMemory:
        return super().memory(rank) + MethodMemory(passing=4 * rank.cells)  # dense gradients
