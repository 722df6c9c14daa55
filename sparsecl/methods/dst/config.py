"""Options of the methods that move the topology (dynamic sparse training)."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from sparsecl.methods.facts import MethodConfig


@dataclass(frozen=True, kw_only=True)
class SetConfig(MethodConfig):
    """How often and how much of each layer is rewired."""

    flags = {"C": "a little, at rewires"}
    rewires = True

    every: Annotated[int, Ge(1)] = 100
    """Optimizer steps between rewires, in all phases."""

    drop_fraction: Annotated[float, Ge(0.0), Lt(1.0)] = 0.3
    """zeta: share of the positive and of the negative weights of a layer that is replaced."""
