"""Options of the methods that are modelled on the brain."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from sparsecl.methods.facts import MethodConfig, MethodMemory, RunFacts
from sparsecl.sparse.sizes import RankSizes


@dataclass(frozen=True, kw_only=True)
class XdgConfig(MethodConfig):
    """How many hidden units a domain does without."""

    flags = {"I": "yes", "B": "yes", "C": "a product for each hidden unit"}

    closed: Annotated[float, Ge(0.0), Lt(1.0)] = 0.8
    """Probability that a hidden unit of the feed-forward parts is closed in a domain; 0 is plain
    training."""

    def check(self, run: RunFacts) -> None:
        if run.joint:
            raise ValueError("one phase trains all domains: there is no domain to open units for")

    def memory(self, rank: RankSizes) -> MethodMemory:
        units = sum(layer.out_features for layer in rank.layers if layer.kind == "up")
        # The gates, and what the tap of each group has room for (sparse/units.py).
        return MethodMemory(kept=(rank.element + 24) * units)
