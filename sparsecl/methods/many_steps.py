"""What a method does at every step, in numbers, for a loop that makes many steps without its hooks.

A loop of small networks spends most of its time on the way from operation to operation. A method
that says here what its hooks come to is computed inside of the loop; one that cannot is called.
Tensors are the method's own, fp32 of the slices' shape, and are written to in place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sparsecl.methods.context import SliceTensors


@dataclass(frozen=True)
class Pull:
    """What draws d = w - start to zero. square: the gradient gains strength d, sign: strength
    sign(d), both in `after_backward`; soft: |d| loses lr strength, in `after_update`."""

    strength: float
    vectors: bool
    start: SliceTensors
    """Empty = zero."""

    form: Literal["square", "sign", "soft"] = "square"


@dataclass(frozen=True)
class Shake:
    """`after_update`: w <- (1 - lr shrink) w + sigma noise."""

    shrink: float
    sigma: float
    vectors: bool
    name: str
    """Of the noise."""


@dataclass(frozen=True)
class Gate:
    """`after_update`: steps and noise are less where u, the running mean of -g w with `beta`, is
    large: times 1 - sigmoid(u / max u)."""

    utility: SliceTensors
    beta: float
    count: int
    """Steps that u has seen."""

    sigma: float
    """Of the noise; times the learning rate."""

    protecting: bool
    """Otherwise the noise alone is less."""

    uncorrected: bool
    """max u is times 1 - beta^count, and may be below zero."""

    name: str
    """Of the noise."""


@dataclass(frozen=True)
class Watch:
    """`after_step`: traces of hidden units, by group; rate times the units older than `maturity`
    are due."""

    traces: Mapping[str, Any]
    """With age int64 [N, n], utility and mean fp32 [N, n], due fp64 [N]."""

    decay: float
    rate: float
    maturity: int
    of: Literal["one", "size", "distance"]
    """The utility of a step is 1, |h|, or |h - mean|."""

    weighed: bool
    """Times mean |w_out|."""

    adaptable: bool
    """By mean |w_in|."""

    replace: Callable[[str, int, int], None]
    """Called between steps: (group, network, how many units are due)."""


@dataclass(frozen=True, kw_only=True)
class ManySteps:
    """The hooks of a step of one method."""

    pull: Pull | None = None
    shake: Shake | None = None
    gate: Gate | None = None
    watch: Watch | None = None

    idle: int | None = None
    """Steps from now on in which the hooks do nothing but this; at the next one they must be
    called. None = all."""
