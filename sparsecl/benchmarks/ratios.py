"""Figures from raw times: medians, paired ratios, slopes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """Time relative to the baseline, over the rounds: median, first and third quartile."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Slope:
    """Exponent k of time ~ x^k, fitted by least squares on logarithms, and R^2 of the fit."""

    exponent: float
    r_squared: float


def paired_ratio(seconds: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Quartiles of the ratio round by round; both arguments are in the order of the rounds."""
    ratios = np.asarray(seconds) / np.asarray(baseline)
    q1, median, q3 = (float(value) for value in np.percentile(ratios, (25, 50, 75)))
    return Ratio(median, q1, q3)


def summary(
    seconds: Mapping[str, Sequence[float]],
    baseline: Mapping[str, Sequence[float]],
    tokens_per_step: int,
) -> dict[str, Any]:
    """Medians of the whole and its parts, tokens per second, ratio to the baseline."""
    found = medians(seconds)
    return {
        "median_seconds": found,
        "tokens_per_second": tokens_per_step / found["step"],
        "ratio": asdict(paired_ratio(seconds["step"], baseline["step"])),
    }


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each part."""
    return {name: float(np.median(values)) for name, values in seconds.items()}


def log_slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Fit log y = k log x + c to three points or more, all positive.

    Equal y fit perfectly with k = 0: R^2 is then 1.
    """
    assert len(x) == len(y) >= 3, (x, y)
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    exponent, offset = (float(value) for value in np.polyfit(log_x, log_y, 1))
    left = float(np.square(log_y - exponent * log_x - offset).sum())
    spread = float(np.square(log_y - log_y.mean()).sum())
    return Slope(exponent, 1.0 - left / spread if spread > 1e-24 else 1.0)
