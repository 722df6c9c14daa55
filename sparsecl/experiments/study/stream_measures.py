"""The figures of one network of a stream that studies compare, from the records of its run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sparsecl.errors import DataError
from sparsecl.experiments.study.measures import STREAM_MEASURES
from sparsecl.streams.records import read_lines, results, summary

Curves = Mapping[str, Sequence[float]]
"""Of one network: figure -> its value by task (streams/records.py)."""

LEARNED = ("accuracy_after", "online_accuracy")
"""What a network has learned of a task; the first one that was measured counts."""

LATE = ("p", "change_erank")
"""Figures of tasks, of which the last third counts."""

PANEL = {
    "dead": "dead",
    "dormant": "dormant",
    "erank": "erank",
    "stable_rank": "stable_rank_F",
    "srank99": "srank99",
    "weight_size": "weight_mean_abs",
}
"""Measure -> figure of the panel, which is taken after the last task."""


def stream_curves(run: Path) -> dict[int, Curves]:
    """Seed -> curves of a run that is done.

    Raises:
        DataError: the records are damaged, or a network has not seen all tasks.
    """
    lines = read_lines(run)
    try:
        found = results(lines)
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{run}: its records are not those of a whole stream ({error!r})") from None
    return {int(seed): curves for seed, curves in found["per_seed"].items()}


def learned_of(curves: Curves) -> str:
    """Name of the curve that says what was learned."""
    return next(name for name in LEARNED if name in curves)


def stream_measures(networks: Mapping[int, Curves]) -> dict[int, dict[str, float | None]]:
    """Seed -> every measure of a network, None where it has no such figure.

    The best window is that of the mean over all networks of the arm, as in results.json: a window
    of each one's own would be picked for its noise.
    """
    curves = {seed: np.asarray(one[learned_of(one)]) for seed, one in networks.items()}
    found = summary([curve.tolist() for curve in curves.values()])
    first, size = found["best_window"]["first_task"], found["best_window"]["tasks"]
    last = found["last_third"]["first_task"]
    values: dict[int, dict[str, float | None]] = {}
    for seed, curve in curves.items():
        best, late = float(curve[first : first + size].mean()), float(curve[last:].mean())
        own = networks[seed]
        values[seed] = dict.fromkeys(STREAM_MEASURES) | {
            "best_window": best,
            "last_third": late,
            "lost": best - late,
            "accuracy": float(curve.mean()),
            **{name: float(np.mean(own[name][last:])) if name in own else None for name in LATE},
            **{name: own[key][-1] if key in own else None for name, key in PANEL.items()},
        }
    return values
