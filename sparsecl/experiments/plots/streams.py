"""The picture of a run on a stream: accuracy by task, and the signs of lost plasticity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsecl.experiments.plots import style
from sparsecl.experiments.plots.style import COLOURS, INK, clean, plain, save_png

LEARNED = {
    "accuracy_after": "accuracy on held-out images at the end of a task",
    "online_accuracy": "online accuracy",
}
"""Of a task; the first one that was measured is drawn."""

PANELS = {
    "accuracy_before": "accuracy on the task to come",
    "dead": "dead units, share",
    "erank": "effective rank of a layer",
    "weight_mean_abs": "mean |w|",
}


def stream_plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw results.json of a stream as PNG: means over seeds, bands of their standard deviation."""
    figure = Figure(figsize=(11.0, 7.0), dpi=style.DPI, layout="constrained")
    grid = figure.add_gridspec(2, len(PANELS), height_ratios=(1.5, 1.0))
    upper = figure.add_subplot(grid[0, :])
    learned = next(name for name in LEARNED if name in results)
    _draw(upper, results, learned, LEARNED[learned], COLOURS[0])
    for place, (name, label) in enumerate(PANELS.items()):
        if name not in results and name not in results["panel"]:
            continue  # without a hidden layer there are none of its figures
        axes = figure.add_subplot(grid[1, place])
        _draw(axes, results, name, label, COLOURS[1 + place])
    num = len(results["seeds"])
    seeds = f"{num} seeds, band: standard deviation" if num > 1 else "one seed"
    title = f"{results['name']}: {results['stream']}, {seeds}"
    figure.suptitle(plain(title), color=INK, fontsize=12, fontweight="bold")
    save_png(figure, path)


def _draw(axes: Axes, results: Mapping[str, Any], name: str, label: str, colour: str) -> None:
    rows = np.asarray([table[name] for table in results["per_seed"].values()])
    # Entry t of what is measured before tasks is drawn where task t begins.
    x = np.arange(rows.shape[1]) + (1 if name in LEARNED else 0)
    mean = rows.mean(0)
    axes.plot(x, mean, color=colour, linewidth=1.6, zorder=3)
    if len(rows) > 1:
        spread = rows.std(0, ddof=1)
        axes.fill_between(
            x, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0, zorder=2
        )
    axes.set_title(label, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("task" if name in LEARNED else "tasks learned")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    clean(axes)
