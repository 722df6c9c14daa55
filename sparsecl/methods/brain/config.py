"""Options of the methods that are modelled on the brain."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Lt

from sparsecl.methods.brain.cycle import Cycle
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


ASKING = ("replay", "derpp", "self_replay", "lwf", "sparcl", "hst")
"""Methods that look for the new sequences of a step, of which there are none in sleep."""


@dataclass(frozen=True, kw_only=True)
class HstConfig(Cycle, MethodConfig):
    """When the model sleeps, what it remembers then, and how much weights are scaled down."""

    flags = {"D": "with `sleep`", "C": "a look at every linear, with `down_scaling`"}

    sequences: Annotated[int, Ge(1)] = 1024
    """Capacity of the memory for sleep, in training sequences of model.context tokens, over all
    ranks."""

    @property
    def reread_share(self) -> float:
        return self.num_asleep / self.every  # in the place of new ones: nothing is added to a step

    def check(self, run: RunFacts) -> None:
        self.check_cycle()
        check_alone(self.sleep, run.others)

    def memory(self, rank: RankSizes) -> MethodMemory:
        names = 16 * self.sequences if self.sleep else 0
        return MethodMemory(host=names) + down_scaling_memory(self, rank)


def check_alone(sleep: float, others: Collection[str]) -> None:
    """Raise ValueError if another method looks for the new sequences of a step that has none."""
    for name in others:
        if sleep and name in ASKING:
            raise ValueError(
                f"sleep={sleep:g}: methods.{name} asks every step for its new sequences, and there "
                "are none in sleep. Use sleep 0, or leave the other one out."
            )


def down_scaling_memory(cycle: Cycle, rank: RankSizes) -> MethodMemory:
    """In the last step of a cycle: which weights are weak, and of one whole linear its weights and
    sizes, for a moment."""
    if not cycle.down_scaling:
        return MethodMemory()
    whole = 20 * max(layer.num_cells for layer in rank.layers)
    return MethodMemory(update=rank.slices + whole)
