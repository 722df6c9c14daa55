"""Which tokens may be drawn, and how probable each is: temperature, top-k, top-p.

V = token ids in use. In the order of transformers: the logits are divided by the temperature, the
k most likely tokens stay, and of these the fewest whose probability, among these k, adds up to p
(Holtzman et al. 2020, https://arxiv.org/abs/1904.09751). Equal logits count the lower id first, so
every set is exact. In NumPy: a row of V numbers is small, and no command line has to wait for torch
to hear that it is wrong.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ChoiceConfig:
    """How a token is chosen of a distribution."""

    temperature: float = 1.0
    """Logits are divided by it; 0 = always the most likely token."""

    top_k: int | None = None
    """Only so many of the most likely tokens; None = all."""

    top_p: float = 1.0
    """Only the fewest most likely tokens that have this probability together; 1 = all."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0.0):
            raise ValueError(f"temperature must be >= 0 and finite, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be >= 1 token, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


def shaped(logits: NDArray[np.floating], choice: ChoiceConfig) -> NDArray[np.float64]:
    """Logits [V] of the distribution to draw from; -inf for a token that may not be drawn.

    The largest is 0. At temperature 0 one token stays, the most likely one.
    """
    found = logits.astype(np.float64)
    found -= found.max()
    order = np.argsort(-found, kind="stable")  # the lower id first on a tie
    if choice.temperature == 0.0:
        found[order[1:]] = -np.inf
        return found
    # The largest is 0 by now, so that no quotient is inf - inf or 0 / 0, however small it is.
    with np.errstate(over="ignore"):
        found /= choice.temperature
    if choice.top_k is not None:
        found[order[choice.top_k :]] = -np.inf
    if choice.top_p < 1.0:
        upto = np.cumsum(probabilities(found)[order])
        # The first token that reaches p is the last that stays.
        num_kept = int(np.searchsorted(upto, choice.top_p)) + 1
        found[order[num_kept:]] = -np.inf
    return found


def probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """softmax of logits [V] whose largest is 0."""
    weights = np.exp(logits)
    return weights / weights.sum()
