"""What a user may say about the topology."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TopologyConfig:
    """Which weights of the masked matrices may live."""

    kind: Literal["dense", "er_fixed", "er_bernoulli"] = "er_fixed"
    """Graph family. er_fixed: exactly round(density * cells) live weights; er_bernoulli: every
    weight lives with probability density; dense: all weights live, density is ignored."""

    density: float = 0.1
    """Live weights / all weights of the masked matrices, in (0, 1]."""

    role: Literal["topology", "update"] = "topology"
    """topology: absent weights do not exist (value 0). update: all weights exist, but only those
    of the topology are trained; the others keep their initial value."""

    storage: Literal["masked"] = "masked"
    """masked: a dense tensor and a bool mask."""

    allocation: Literal["uniform", "erk"] = "uniform"
    """How density is spread over layers. uniform: the same in each; erk: small layers denser."""

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:  # also catches NaN
            raise ValueError(
                f"density must be in (0, 1], got {self.density:g}{_percent_hint(self.density)}"
            )

    @property
    def rho(self) -> float:
        """The density that is built: 1.0 for a dense model whatever `density` says."""
        return 1.0 if self.kind == "dense" else self.density


def _percent_hint(density: float) -> str:
    """A way out for numbers that look like a percentage."""
    if not 1.0 < density < 100.0:
        return ". It is the share of weights that live: write 0.1 for one weight in ten."
    return (
        f". {density:g}% of the weights live: write {density / 100:g}. "
        f"For {density:g}% sparsity write density {1 - density / 100:g}."
    )
