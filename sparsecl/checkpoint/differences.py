"""In what two checkpoints differ: every state of every parameter, and the live sets.

Both may be of any layout: they are compared in global coordinates, one tensor of each at a time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl.checkpoint.canonical import Advance, TensorSource, keys
from sparsecl.topology.layer import LayerTopology


@dataclass(frozen=True)
class TensorDifference:
    """One state of one parameter, or a sum over parameters (name "")."""

    state: str
    name: str
    numel: int

    num_differing: int
    """Elements more than the tolerance apart; NaN differs from all but NaN."""

    max_abs: float
    """Largest |a - b|."""

    squares: float
    """Sum of (a - b)^2."""

    squares_first: float
    """Sum of a^2."""

    problem: str = ""
    """Why there are no numbers: it is in one only, or of another shape."""

    @property
    def equal(self) -> bool:
        """Nothing differs."""
        return not self.problem and self.num_differing == 0

    @property
    def relative_l2(self) -> float:
        """|a - b| / |a|; 0 if both are 0, infinity if only a is."""
        if self.squares == 0.0:
            return 0.0
        return math.sqrt(self.squares / self.squares_first) if self.squares_first else math.inf


@dataclass(frozen=True)
class LiveDifference:
    """The live sets of one matrix."""

    name: str
    live_a: int
    live_b: int
    only_a: int
    only_b: int
    problem: str = ""

    @property
    def equal(self) -> bool:
        """Both have the same live weights."""
        return not self.problem and self.only_a == self.only_b == 0


def compare_tensors(
    a: TensorSource, b: TensorSource, *, tolerance: float = 0.0, advance: Advance | None = None
) -> Iterator[TensorDifference]:
    """One result for each (state, name) of either checkpoint, in the order of `a`.

    Args:
        tolerance: elements up to this far apart count as equal.
        advance: called with the bytes of `a` done, `num_bytes(a, keys(a))` in all.
    """
    for state, name in dict.fromkeys([*keys(a), *keys(b)]):
        if not a.has(state, name) or not b.has(state, name):
            problem = f"only in {'A' if a.has(state, name) else 'B'}"
            yield TensorDifference(state, name, 0, 0, 0.0, 0.0, 0.0, problem)
            continue
        yield _compare(a, b, state, name, tolerance)
        if advance:
            advance(4 * math.prod(a.manifest.parameters[name].shape))


def compare_live(a: TensorSource, b: TensorSource) -> list[LiveDifference]:
    """One result for each matrix on a topology in either checkpoint."""
    names = dict.fromkeys([*a.topologies, *b.topologies])
    return [_live(name, a.topologies.get(name), b.topologies.get(name)) for name in names]


def total(parts: list[TensorDifference], state: str) -> TensorDifference:
    """The sum over the parameters of one state."""
    some = [part for part in parts if part.state == state]
    largest = [part.max_abs for part in some]
    return TensorDifference(
        state,
        "",
        numel=sum(part.numel for part in some),
        num_differing=sum(part.num_differing for part in some),
        # max() alone would lose a NaN that is not the first.
        max_abs=math.nan if any(map(math.isnan, largest)) else max(largest, default=0.0),
        squares=math.fsum(part.squares for part in some),
        squares_first=math.fsum(part.squares_first for part in some),
        problem=next((f"{p.name} {p.problem}" for p in some if p.problem), ""),
    )


def _compare(
    a: TensorSource, b: TensorSource, state: str, name: str, tolerance: float
) -> TensorDifference:
    """A function of its own: its tensors are gone when the next ones are read."""
    first, second = a.read(state, name), b.read(state, name)
    if first.shape != second.shape:
        problem = f"is {list(first.shape)} in A, {list(second.shape)} in B"
        return TensorDifference(state, name, 0, 0, 0.0, 0.0, 0.0, problem)
    same = (first == second) | (first.isnan() & second.isnan())
    squares_first = _squares(first)
    apart = second.sub_(first).masked_fill_(same, 0.0).abs_()  # no third tensor of this size
    return TensorDifference(
        state,
        name,
        numel=first.numel(),
        num_differing=int((~(apart <= tolerance)).sum()),
        max_abs=float(apart.max()) if apart.numel() else 0.0,
        squares=_squares(apart),
        squares_first=squares_first,
    )


def _squares(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _live(name: str, a: LayerTopology | None, b: LayerTopology | None) -> LiveDifference:
    live_a, live_b = (topology.num_live if topology else 0 for topology in (a, b))
    if a is None or b is None:
        return LiveDifference(name, live_a, live_b, 0, 0, f"only in {'B' if a is None else 'A'}")
    if (a.out_features, a.in_features) != (b.out_features, b.in_features):
        return LiveDifference(name, live_a, live_b, 0, 0, "of another shape")
    only_a, only_b = a.bits & ~b.bits, b.bits & ~a.bits
    return LiveDifference(name, live_a, live_b, _num_bits(only_a), _num_bits(only_b))


def _num_bits(packed: NDArray[np.uint8]) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))
