"""What a method computes beside the passes of the model, known before a run. No torch.

Counted as in model/flops.py: matrix products, 2 FLOPs for each pair of numbers that meet.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """Where a run is, between two steps or within one. All counts are of what is done."""

    step: int
    """Optimizer steps of the whole run."""

    total_steps: int
    """That the run will have at its end, at most: a phase may end early."""

    phase: int
    """0-based."""

    phase_step: int
    phase_steps: int
    """Of this phase, at most: it may end early."""


@dataclass(frozen=True, kw_only=True)
class LayerWork:
    """A matrix [O, I] on a topology; global."""

    outputs: int
    inputs: int
    live: int
    """At the start."""

    kind: str = ""
    """Its job in the block."""

    heads: int = 1
    """Whose rows make it up: of q, k and v."""

    sparse: bool
    """Its products touch live weights alone (backend native, csr or block)."""

    has_gradient: bool
    """Its backward pass makes the gradient of absent weights anyway (masked storage, backend
    dense)."""

    @property
    def cells(self) -> int:
        """Weights of the dense matrix."""
        return self.outputs * self.inputs


@dataclass(frozen=True, kw_only=True)
class RunWork:
    """A run, as far as the work of a method depends on it."""

    layers: tuple[LayerWork, ...]
    phases: tuple[int, ...]
    """Steps of each, at most."""

    tokens: int
    """New ones of a step, over all ranks."""

    @property
    def live(self) -> int:
        """Of all layers, at the start."""
        return sum(layer.live for layer in self.layers)

    @property
    def cells(self) -> int:
        """Of all layers."""
        return sum(layer.cells for layer in self.layers)

    def shrunk(self, share: float) -> list[int]:
        """Live weights of each layer where all keep one share of those of the start; one stays."""
        return [max(1, round(share * layer.live)) for layer in self.layers]

    def moments(self) -> Iterator[Moment]:
        """Before each step."""
        step, total = 0, sum(self.phases)
        for phase, num_steps in enumerate(self.phases):
            for phase_step in range(num_steps):
                yield Moment(step, total, phase, phase_step, num_steps)
                step += 1


@dataclass(frozen=True, kw_only=True)
class MethodWork:
    """FLOPs of a method in a whole run, of new tokens; an upper bound where a phase may end
    early."""

    density: int = 0
    """Of the weights that live beyond those of the start, in forward and backward passes; below
    zero where there are fewer."""

    gradients: int = 0
    """Of gradients of absent weights."""

    scores: int = 0
    """Of the graph. Every rank computes all of them, at the same time: counted once."""

    executed: int = 0
    """What the backends really do for `density` and `gradients`."""

    def __add__(self, other: "MethodWork") -> "MethodWork":
        return MethodWork(
            density=self.density + other.density,
            gradients=self.gradients + other.gradients,
            scores=self.scores + other.scores,
            executed=self.executed + other.executed,
        )
