"""Topologies with a fixed local structure: N:M groups and diagonal blocks.

O = out_features, I = in_features, global.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsecl.topology.sampling import choose_per_row

NmAxis = Literal["input", "output"]


def nm(
    out_features: int,
    in_features: int,
    *,
    rho: float,
    rng: np.random.Generator,
    m: int = 16,
    axis: NmAxis = "input",
) -> NDArray[np.int64]:
    """Keep n = rho * m of every m consecutive weights, drawn uniformly in each group.

    Args:
        rho: density; n must be a whole number.
        rng: the stream of this layer; it is advanced.
        m: weights per group.
        axis: input groups the inputs of each output unit (2:4 of sparse tensor cores), output the
            outputs of each input unit.

    Returns:
        Sorted flat indices o * I + i of the live weights.

    Raises:
        ValueError: if n is not whole, or m does not divide the side; begins with the key.
    """
    num_live = _live_per_group(rho, m)
    grouped, other = in_features, out_features
    if axis == "output":
        grouped, other = other, grouped
    if grouped % m:
        raise ValueError(
            f"nm.m={m} does not divide the {axis} side, {grouped}. "
            f"Sizes that do: {divisors_text(grouped)}"
        )
    mask = choose_per_row(m, np.full(other * grouped // m, num_live), rng).reshape(other, grouped)
    return np.flatnonzero(mask if axis == "input" else mask.T)


def block_diag(
    out_features: int, in_features: int, *, rho: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """g equal blocks on the diagonal, density 1 / g: units of two blocks never meet.

    The positive control for isolation. Nothing is drawn; `rng` is there for the common signature.

    Raises:
        ValueError: if rho is not 1 / g for a g that divides both sides; begins with `density`.
    """
    num_blocks = round(1.0 / rho)
    side = math.gcd(out_features, in_features)
    # A density such as 1/3 is written with a few digits.
    if abs(rho * num_blocks - 1.0) > 1e-3 or side % num_blocks:
        allowed = [1.0 / divisor for divisor in divisors(side)]
        raise ValueError(
            f"density {rho:g}: block_diag needs density 1 / g, where g divides both sides. "
            f"The nearest: {_nearest_text(rho, allowed)}"
        )
    # Row and column index, each split into block and place in the block.
    mask = np.zeros(
        (num_blocks, out_features // num_blocks, num_blocks, in_features // num_blocks), dtype=bool
    )
    for block in range(num_blocks):
        mask[block, :, block, :] = True
    return np.flatnonzero(mask)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def divisors_text(number: int) -> str:
    """The divisors above 1 for a message, twelve at most; 1 alone if there is no other."""
    found = divisors(number)[1:] or [1]
    return ", ".join(map(str, found[:12])) + (", ..." if len(found) > 12 else "")


def _live_per_group(rho: float, m: int) -> int:
    num_live = round(rho * m)
    if num_live < 1 or abs(rho * m - num_live) > 1e-6 * m:
        allowed = [n / m for n in range(1, m + 1)]
        raise ValueError(
            f"density {rho:g} times nm.m={m} is not a whole number. "
            f"The nearest: {_nearest_text(rho, allowed)}"
        )
    return num_live


def _nearest_text(rho: float, allowed: list[float]) -> str:
    """The next allowed density below and above rho."""
    below = max((density for density in allowed if density <= rho), default=None)
    above = min((density for density in allowed if density >= rho), default=None)
    return " or ".join(f"{density:g}" for density in (below, above) if density is not None)
