"""Shares of hidden units that have stopped working, under the definition that each name stands for.

h_si is the activation of unit i on token s, S tokens and n units in all:

    dead           sum_s |h_si| = 0                        Dohare et al. 2024, permuted MNIST
    dormant        h_si != 0 on less than 1% of tokens     Dohare et al. 2024, CIFAR-100
    tau_dormant_t  E_s|h_si| <= t * mean_k E_s|h_sk|       Sokar et al. 2023

Under a ReLU the first two say how much capacity is lost. A GELU is zero nowhere but at zero and far
below it, so there they count the units that have no live input, and tau_dormant is the one to read.
"""

import numpy as np
from numpy.typing import ArrayLike

DORMANT_SHARE = 0.01  # the default in the code of Dohare et al.
TAUS = (0.025, 0.1)  # Sokar et al. report both; ReDo as run by Dohare et al. takes 0.1


def unit_figures(abs_sum: ArrayLike, num_active: ArrayLike, num_samples: int) -> dict[str, float]:
    """All shares by name, each in [0, 1].

    Args:
        abs_sum: sum over tokens of |h|, [n], of all units of the layer.
        num_active: number of tokens with h != 0, [n].
        num_samples: tokens, >= 1.

    Raises:
        ValueError: if the shapes disagree or there are no tokens.
    """
    sums, active = np.asarray(abs_sum, dtype=np.float64), np.asarray(num_active)
    if sums.shape != active.shape or sums.ndim != 1 or num_samples < 1:
        raise ValueError(
            f"abs_sum {sums.shape} and num_active {active.shape} must be [n], equal, over at "
            f"least one token, got {num_samples}"
        )
    mean = sums.mean()
    figures = {
        "dead": float((sums == 0).mean()),
        "dormant": float((active / num_samples < DORMANT_SHARE).mean()),
    }
    for tau in TAUS:
        # Not divided by the mean: in a layer of dead units all are dormant, and 0 <= 0 says so.
        figures[f"tau_dormant_{tau:g}"] = float((sums <= tau * mean).mean())
    return figures
