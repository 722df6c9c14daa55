"""From the records of the slippery Ant to results.json, and to a table. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsecl.errors import DataError
from sparsecl.streams.records import RESULTS, SCALARS, read_lines

__all__ = ["RESULTS", "SCALARS", "read_lines", "results", "table"]

PANEL = {
    "dead": "dead units",
    "dormant": "dormant",
    "erank": "effective rank",
    "srank99": "srank 99 %",
    "weight_mean_abs": "mean |w|",
}
"""What the screen shows of the policy, with its heading."""

KEYS = ("kind", "seed", "sealed")


def results(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """results.json, from the records alone.

    Raises:
        DataError: a seed has not seen all frictions.
    """
    header, end = lines[0], lines[-1]
    per_seed = {str(seed): _of_seed(lines, seed, header["tasks"]) for seed in header["seeds"]}
    means = [one["tasks"]["mean_return"] for one in per_seed.values()]
    return {
        **{key: header[key] for key in ("name", "stream", "seeds", "tasks", "steps_per_task")},
        "mean_return": np.mean(means, axis=0).tolist(),
        "per_seed": per_seed,
        **{key: header[key] for key in ("methods", "parameters", "config")},
        **{key: end[key] for key in ("audit", "seconds")},
    }


def _of_seed(lines: Sequence[Mapping[str, Any]], seed: int, tasks: int) -> dict[str, Any]:
    """Columns of tasks, episodes and rollouts."""
    found = {kind: _columns(lines, kind, seed) for kind in ("task", "episode", "rollout")}
    if found["task"].get("task") != list(range(tasks)):
        raise DataError(f"seed {seed}: the records have not all tasks, each once and in order")
    return {"tasks": found["task"], "episodes": found["episode"], "panel": found["rollout"]}


def _columns(lines: Sequence[Mapping[str, Any]], kind: str, seed: int) -> dict[str, list[Any]]:
    rows = [line for line in lines if line["kind"] == kind and line["seed"] == seed]
    names = [name for name in rows[0] if name not in KEYS] if rows else []
    return {name: [row[name] for row in rows] for name in names}


def table(found: Mapping[str, Any]) -> str:
    """A line for each friction of each seed; figures of the policy at its last rollout."""
    heads = ["seed", "task", "friction", "episodes", "mean return", *PANEL.values()]
    rows = [heads]
    for seed, one in found["per_seed"].items():
        tasks, panel = one["tasks"], one["panel"]
        for k in range(found["tasks"]):
            last = max(np.searchsorted(panel["step"], tasks["step"][k], "right") - 1, 0)
            figures = (tasks["friction"][k], tasks["episodes"][k], tasks["mean_return"][k])
            rows.append([
                seed, str(k + 1), *(f"{value:.4g}" for value in figures),
                *(f"{panel[name][last]:.4f}" for name in PANEL),
            ])  # fmt: skip
    widths = [max(len(row[k]) for row in rows) for k in range(len(heads))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
