"""Options of the methods that move the topology (dynamic sparse training)."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from sparsecl.methods.facts import MethodConfig, RunFacts


@dataclass(frozen=True, kw_only=True)
class RewireConfig(MethodConfig):
    """What drops and grows has these options, and needs weights that can move one by one."""

    flags = {"C": "a little, at rewires"}
    rewires = True

    every: Annotated[int, Ge(1)] = 100
    """Optimizer steps between rewires, in all phases."""

    drop_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.3
    """Share of the live weights of a layer that is replaced."""

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


@dataclass(frozen=True, kw_only=True)
class SetConfig(RewireConfig):
    """How often and how much of each layer is rewired; zeta is `drop_fraction`, of the positive and
    of the negative weights apart."""
