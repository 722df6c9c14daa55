"""Options of the methods that keep a network able to learn."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from sparsecl.methods.facts import MethodConfig


@dataclass(frozen=True, kw_only=True)
class ShrinkPerturbConfig(MethodConfig):
    """How much all matrices shrink, and how much noise comes in, at every step."""

    flags = {"C": "a little: a normal draw for each weight"}

    shrink: Annotated[float, Ge(0.0)] = 1.0e-4
    """lambda: a weight loses lr * lambda of itself at each step, beside optimizer.weight_decay."""

    sigma: Annotated[float, Ge(0.0)] = 1.0e-5
    """Standard deviation of the noise of a step; not times the learning rate."""

    vectors: bool = False
    """Perturb and shrink vectors (norms, biases) too."""
