"""What a contrast can show with so many seeds, and how many seeds an effect needs.

n seeds (of each arm), sd = standard deviation of what is averaged, a = alpha / number of planned
contrasts, the hurdle of Holm's first step. Two-sided t test:

    power  = P(|T| > t_v(1 - a / 2)),  T noncentral t of v degrees of freedom, noncentrality d
    paired:    v = n - 1       d = effect / (sd / sqrt(n))          sd of the differences
    unpaired:  v = 2 (n - 1)   d = effect / (sd sqrt(2 / n))        sd within the arms, pooled

Cohen 1988, Statistical Power Analysis, ch. 2; the noncentral t is exact (scipy.special.nctdtr).
The tests of a study permute (metrics/significance.py). Their power is nearly that of t once they
can reach a p <= a at all, so no number of seeds below `significance.seeds_needed` counts.

A standard deviation from few seeds is itself uncertain. `upper_sd` gives the end of its one-sided
80 % interval, (n - 1) s^2 / chi2_(n-1)(0.2), which keeps a plan from being too small more often
than one time in five (Browne 1995, Statistics in Medicine 14:1933). Values are taken as normal.
"""

import math

from sparsecl.metrics.bootstrap import MIN_SEEDS
from sparsecl.metrics.significance import seeds_needed

POWER = 0.8
"""Share of repeated studies in which an effect is to be found: the usual value, Cohen 1988."""

MOST = 100_000
"""Seeds beyond which no number is given."""


def power(
    effect: float, sd: float, num_seeds: int, *, alpha: float = 0.05, paired: bool = True
) -> float:
    """Chance that a two-sided t test of size `alpha` finds a true difference.

    Args:
        effect: true difference of the means, in the metric's unit; its sign does not matter.
        sd: as above, in the same unit.
        num_seeds: pairs, or seeds of each arm.
        alpha: in (0, 1), already divided by the number of contrasts.

    Raises:
        ValueError: below 2 seeds, for a negative or non-finite sd, an effect that is not finite,
            or alpha outside (0, 1).
    """
    from scipy import special

    _check(sd, alpha)
    if num_seeds < 2:
        raise ValueError(f"a t test needs at least 2 seeds, got {num_seeds}")
    if not math.isfinite(effect):
        raise ValueError(f"effect must be finite, got {effect}")
    if sd == 0:
        return 1.0 if effect else alpha
    freedom, error = _error(sd, num_seeds, paired)
    hurdle, shift = float(special.stdtrit(freedom, 1 - alpha / 2)), abs(effect) / error
    # Far out nctdtr underflows to NaN where the power is 1 to all digits.
    if shift - hurdle > 20:
        return 1.0
    lower = float(special.nctdtr(freedom, shift, -hurdle))
    return 1 - float(special.nctdtr(freedom, shift, hurdle)) + (0.0 if math.isnan(lower) else lower)


def detectable(
    sd: float, num_seeds: int, *, alpha: float = 0.05, wanted: float = POWER, paired: bool = True
) -> float | None:
    """The smallest true difference that is found with the chance `wanted`, in sd's unit.

    None below the seeds with which a permutation test of size `alpha` can reject at all.

    Raises:
        ValueError: as `power`, or for a chance that is not in (alpha, 1).
    """
    from scipy import optimize

    _check(sd, alpha, wanted)
    if num_seeds < fewest_seeds(alpha, paired=paired):
        return None
    if sd == 0:
        return 0.0
    high = sd
    while power(high, sd, num_seeds, alpha=alpha, paired=paired) < wanted:
        high *= 2

    def missing(effect: float) -> float:
        return power(effect, sd, num_seeds, alpha=alpha, paired=paired) - wanted

    return float(optimize.root_scalar(missing, bracket=(0.0, high), xtol=1e-9 * sd).root)


def seeds_for(
    effect: float, sd: float, *, alpha: float = 0.05, wanted: float = POWER, paired: bool = True
) -> int | None:
    """Fewest seeds (of each arm) with which `effect` is found with the chance `wanted`.

    None if that takes more than MOST.

    Raises:
        ValueError: as `detectable`, or for an effect of 0, which no number of seeds finds.
    """
    _check(sd, alpha, wanted)
    if not (math.isfinite(effect) and effect):
        raise ValueError(f"effect must be a number other than 0, got {effect}")

    def enough(num_seeds: int) -> bool:
        return power(effect, sd, num_seeds, alpha=alpha, paired=paired) >= wanted

    low = high = fewest_seeds(alpha, paired=paired)
    while not enough(high):
        if high >= MOST:
            return None
        low, high = high + 1, min(2 * high, MOST)
    while low < high:  # power rises with the seeds
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def fewest_seeds(alpha: float, *, paired: bool = True) -> int:
    """Seeds (of each arm) below which no result of a study can be significant at `alpha`."""
    return max(MIN_SEEDS, seeds_needed(alpha, paired=paired))


def upper_sd(sd: float, freedom: int, level: float = 0.8) -> float:
    """Upper end of the one-sided interval of a standard deviation with `freedom` >= 1 degrees.

    Raises:
        ValueError: for freedom below 1, or a level outside (0, 1).
    """
    from scipy import special

    if freedom < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"expected freedom >= 1 and a level in (0, 1), got {freedom}, {level}")
    return sd * math.sqrt(freedom / float(special.chdtri(freedom, level)))


def _error(sd: float, num_seeds: int, paired: bool) -> tuple[int, float]:
    """Degrees of freedom and standard error of the difference."""
    if paired:
        return num_seeds - 1, sd / math.sqrt(num_seeds)
    return 2 * (num_seeds - 1), sd * math.sqrt(2 / num_seeds)


def _check(sd: float, alpha: float, wanted: float | None = None) -> None:
    if not (math.isfinite(sd) and sd >= 0):
        raise ValueError(f"sd must be finite and >= 0, got {sd}")
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}. For 5 % write 0.05.")
    if wanted is not None and not alpha < wanted < 1.0:
        raise ValueError(f"the chance of finding an effect must be in (alpha, 1), got {wanted}")
