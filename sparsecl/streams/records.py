"""From the records of a stream to results.json, and to a table. No torch.

T = tasks. What is measured before each task and after the last has T + 1 entries, what a task sums
up has T; an entry is the mean over seeds.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl.config_nodes import one_line
from sparsecl.errors import DataError
from sparsecl.opening import read_plain
from sparsecl.seal import sealed_lines

SCALARS, RESULTS = "scalars.jsonl", "results.json"
WINDOW = 10
"""Tasks of a window; the best one is what later tasks are compared with."""

Table = dict[str, list[float]]

COLUMNS = {
    "accuracy_after": "held-out accuracy",
    "online_accuracy": "online accuracy",
    "accuracy_before": "before",
    "dead": "dead units",
    "erank": "effective rank",
    "srank99": "srank 99 %",
    "weight_mean_abs": "mean |w|",
    "p": "p(Z)",
}
"""What the screen shows, with its heading."""


BY_TASK = ("p", "p_unclamped", "change_erank")
"""Figures of a task that has been learned."""

SAID = {"accuracy_after": "Accuracy at the end of a task", "online_accuracy": "Online accuracy"}
"""What a summary may be of."""


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The records of a run folder.

    Raises:
        DataError: they are not what was written.
    """
    path = folder / SCALARS
    try:
        return [json.loads(line) for line, _ in sealed_lines(read_plain(path))]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(one_line(f"{path}: cannot be read ({error})")) from None


def results(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """results.json, from the records alone.

    Raises:
        DataError: a seed has not seen all tasks.
    """
    header, end = lines[0], lines[-1]
    per_seed = {seed: _table(lines, seed, header["tasks"]) for seed in header["seeds"]}
    mean = {
        name: np.mean([table[name] for table in per_seed.values()], axis=0).tolist()
        for name in per_seed[header["seeds"][0]]
    }
    before = mean.pop("accuracy_before")
    counts = "accuracy_after" if "accuracy_after" in mean else "online_accuracy"
    tested = {name: mean.pop(name) for name in ("accuracy_after",) if name in mean}
    return {
        **{key: header[key] for key in ("name", "stream", "seeds", "tasks", "samples_per_task")},
        **tested,
        "online_accuracy": mean.pop("online_accuracy"),
        "accuracy_before": before[:-1],
        **{name: mean.pop(name) for name in BY_TASK if name in mean},
        "panel": mean,
        "summary": summary([table[counts] for table in per_seed.values()], counts),
        "per_seed": {str(seed): table for seed, table in per_seed.items()},
        **{key: header[key] for key in ("methods", "parameters", "data", "config")},
        **{key: end[key] for key in ("audit", "steps", "seconds") if key in end},
    }


def summary(curves: Sequence[Sequence[float]], name: str = "online_accuracy") -> dict[str, Any]:
    """An accuracy [seeds, T] in few numbers: the best window of WINDOW tasks of the mean curve, the
    last third of all tasks, and what was lost from the one to the other."""
    table = np.asarray(curves)
    curve = table.mean(0)
    size = min(WINDOW, len(curve))
    windows = np.convolve(curve, np.full(size, 1.0 / size), "valid")
    best, last = int(windows.argmax()), len(curve) - max(1, len(curve) // 3)
    per_seed = table[:, best : best + size].mean(1) - table[:, last:].mean(1)
    return {
        "best_window": {"first_task": best, "tasks": size, name: float(windows[best])},
        "last_third": {"first_task": last, name: float(curve[last:].mean())},
        "lost": float(per_seed.mean()),
        "lost_per_seed": per_seed.tolist(),
    }


def _table(lines: Sequence[Mapping[str, Any]], seed: int, tasks: int) -> Table:
    """Of one seed: figure -> its entries."""
    found: Table = {}
    for kind, num in (("before", tasks + 1), ("task", tasks)):
        rows = [line for line in lines if line["kind"] == kind and line["seed"] == seed]
        if [row["task"] for row in rows] != list(range(num)):
            raise DataError(f"seed {seed}: the records have not all tasks, each once and in order")
        for name in rows[0]:
            if name not in ("kind", "seed", "task", "sealed"):
                found[name] = [row[name] for row in rows]
    return found


def table(found: Mapping[str, Any], *, rows: int = 10) -> str:
    """Means over stretches of tasks, for a terminal; with the deviation over seeds of what
    was learned."""
    names = [name for name in COLUMNS if name in found or name in found["panel"]]
    heads = [COLUMNS[name] for name in names]
    lines = ["  ".join(["tasks".ljust(9), *(head.rjust(max(len(head), 9)) for head in heads)])]
    for part in np.array_split(np.arange(found["tasks"]), min(rows, found["tasks"])):
        cells = [f"{part[0] + 1}-{part[-1] + 1}".ljust(9)]
        for name, head in zip(names, heads, strict=True):
            values = np.asarray(found.get(name) or found["panel"][name])
            text = f"{values[part].mean():.4f}"
            if name in SAID and len(found["seeds"]) > 1:
                text += f" +- {_spread(found, name, part):.4f}"
            cells.append(text.rjust(max(len(head), 9)))
        lines.append("  ".join(cells))
    return "\n".join([*lines, "", said(found)])


def _spread(found: Mapping[str, Any], name: str, part: NDArray[np.int64]) -> float:
    """Standard deviation over seeds of a figure in a stretch of tasks."""
    means = [np.mean(np.take(t[name], part)) for t in found["per_seed"].values()]
    return float(np.std(means, ddof=1))


def said(found: Mapping[str, Any]) -> str:
    """What has become of the ability to learn, in a sentence."""
    best, last = found["summary"]["best_window"], found["summary"]["last_third"]
    lost = found["summary"]["lost"]
    size, first = best["tasks"], best["first_task"] + 1
    name, words = next((n, words) for n, words in SAID.items() if n in best)
    word = "lower" if lost > 0 else "higher"
    return (
        f"{words} was best in tasks {first}-{first + size - 1}: "
        f"{best[name]:.4f}; in the last third, from task {last['first_task'] + 1} on, "
        f"it was {last[name]:.4f}: {abs(lost):.4f} {word}."
    )
