"""When a model is awake and when it sleeps. No torch.

A run is cut into cycles of `every` steps. The last `num_asleep` steps of a cycle are sleep: they
train sequences that were trained before in the place of the new ones.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, Lt

from sparsecl.methods.work import Moment


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """How long a cycle is, how much of it is sleep, and what its end does to the weights."""

    every: Annotated[int, Ge(1)] = 100
    """Optimizer steps of a cycle, counted from the first step of the run."""

    sleep: Annotated[float, Ge(0.0), Lt(1.0)] = 0.2
    """Share of a cycle's steps, its last ones, that train remembered sequences in the place of the
    new ones, which are passed over; 0 = always awake."""

    down_scaling: Annotated[float, Ge(0.0), Lt(1.0)] = 0.05
    """Share of itself that a weight loses at the end of a cycle; 0 = none."""

    protected: Annotated[float, Ge(0.0), Le(1.0)] = 0.2
    """Share of the weights of each linear, those of largest |w|, that lose nothing then."""

    @property
    def num_asleep(self) -> int:
        """Steps of a cycle that are sleep."""
        return round(self.sleep * self.every)

    def check_cycle(self) -> None:
        """Raise ValueError if sleep is no step, or all of them."""
        if self.sleep and not 0 < self.num_asleep < self.every:
            raise ValueError(
                f"sleep={self.sleep:g} of every={self.every} steps is {self.num_asleep} of them; "
                f"at least one is sleep and one is not. Use sleep 0, or a larger every."
            )

    def is_asleep(self, at: Moment) -> bool:
        """The step at hand is sleep."""
        return at.step % self.every >= self.every - self.num_asleep

    def ends(self, at: Moment) -> bool:
        """The step at hand is the last one of a cycle."""
        return (at.step + 1) % self.every == 0
