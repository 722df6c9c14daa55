"""From the records of classes in increments to results.json, and to a table. No torch.

T = tasks. `matrix` [T][T]: row t = after task t, column d = the classes that came with task d; null
where they have not come yet. Everything is the mean over seeds, and under `per_seed` of each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsecl.errors import DataError
from sparsecl.metrics.forgetting import f_last

Table = dict[str, Any]

COLUMNS = {
    "accuracy_seen": "all seen",
    "accuracy_new": "newest",
    "dead": "dead units",
    "dormant": "dormant",
    "final_erank": "effective rank",
    "weight_mean_abs": "mean |w|",
}
"""What the screen shows, with its heading."""

CURVES = ("accuracy_seen", "accuracy_new", "accuracy_validation", "loss")
"""Of tasks that are over; the rest is the panel, from before each task."""


def results(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """results.json, from the records alone.

    Raises:
        DataError: a seed has not seen all tasks.
    """
    header, end = lines[0], lines[-1]
    per_seed = {seed: _table(lines, seed, header["tasks"]) for seed in header["seeds"]}
    tables = list(per_seed.values())
    mean = {
        name: np.mean([table[name] for table in tables], axis=0).tolist()
        for name in tables[0]
        if name != "matrix"
    }
    for seed, table in per_seed.items():
        table["classes"] = header["classes_by_seed"][str(seed)]
    forgetting = [value for t in tables if (value := _forgetting(t["matrix"])) is not None]
    return {
        **{key: header[key] for key in ("name", "stream", "seeds", "tasks", "classes")},
        **{name: mean.pop(name) for name in CURVES if name in mean},
        "matrix": [
            [
                float(np.mean(cells)) if None not in cells else None
                for cells in zip(*rows, strict=True)
            ]
            for rows in zip(*(table["matrix"] for table in tables), strict=True)
        ],
        "panel": mean,
        "summary": {
            "accuracy_last": float(np.mean([table["accuracy_seen"][-1] for table in tables])),
            "accuracy_mean": float(np.mean([table["accuracy_seen"] for table in tables])),
            "forgetting": float(np.mean(forgetting)) if forgetting else None,
        },
        "per_seed": {str(seed): table for seed, table in per_seed.items()},
        **{key: header[key] for key in ("methods", "parameters", "data", "config")},
        **{key: end[key] for key in ("audit", "seconds")},
    }


def _table(lines: Sequence[Mapping[str, Any]], seed: int, tasks: int) -> Table:
    """Of one seed: figure -> its entries."""
    found: Table = {}
    for kind in ("before", "task"):
        rows = [line for line in lines if line["kind"] == kind and line["seed"] == seed]
        if kind == "before" and not rows:
            continue  # a learner that has no units
        if [row["task"] for row in rows] != list(range(tasks)):
            raise DataError(f"seed {seed}: the records have not all tasks, each once and in order")
        for name in rows[0]:
            if name not in ("kind", "seed", "task", "sealed", "row"):
                found[name] = [row[name] for row in rows]
        if kind == "task":
            found["matrix"] = [row["row"] + [None] * (tasks - len(row["row"])) for row in rows]
    return found


def _forgetting(matrix: Sequence[Sequence[float | None]]) -> float | None:
    """F_last of the accuracy; None with a single task."""
    accuracy = np.array([[np.nan] * len(matrix), *matrix], dtype=np.float64)
    return f_last(-accuracy, range(len(matrix)))


def table(found: Mapping[str, Any], *, rows: int = 20) -> str:
    """A line for each task, or for some of them spread evenly, for a terminal."""
    flat = {**found, **found["panel"]}
    names = [name for name in COLUMNS if name in flat]
    heads = [COLUMNS[name] for name in names]
    lines = ["  ".join(["classes".ljust(9), *(head.rjust(max(len(head), 9)) for head in heads)])]
    for task in np.unique(np.linspace(0, found["tasks"] - 1, rows).round().astype(int)):
        cells = [str(found["classes"][task]).ljust(9)]
        for name, head in zip(names, heads, strict=True):
            text = f"{flat[name][task]:.4f}"
            if name == "accuracy_seen" and len(found["seeds"]) > 1:
                each = [seed[name][task] for seed in found["per_seed"].values()]
                text += f" +- {np.std(each, ddof=1):.4f}"
            cells.append(text.rjust(max(len(head), 9)))
        lines.append("  ".join(cells))
    return "\n".join([*lines, "", said(found)])


def said(found: Mapping[str, Any]) -> str:
    """What has become of it, in a sentence."""
    summary, classes = found["summary"], found["classes"][-1]
    text = f"Accuracy on {classes} classes at the end: {summary['accuracy_last']:.4f}"
    if summary["forgetting"] is None:
        return text + "."
    return text + f"; classes lost {summary['forgetting']:.4f} since their own task."
