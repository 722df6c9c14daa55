"""The picture of classes in increments: accuracy by classes, what is kept of each task, and the
signs of lost plasticity where the learner has units."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsecl.experiments.plots import style
from sparsecl.experiments.plots.style import COLOURS, INK, clean, plain, save_png

CURVES = {"accuracy_seen": "all classes so far", "accuracy_new": "the newest classes"}
PANELS = {
    "dead": "dead units, share",
    "dormant": "dormant units, share",
    "final_erank": "effective rank of the features",
    "weight_mean_abs": "mean |w|",
}


def increments_plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw results.json of class_incremental as PNG: means over seeds, bands of their deviation."""
    panels = {name: label for name, label in PANELS.items() if name in results["panel"]}
    figure = Figure(figsize=(11.0, 7.0 if panels else 4.5), dpi=style.DPI, layout="constrained")
    grid = figure.add_gridspec(2 if panels else 1, 4, height_ratios=(1.5, 1.0)[: 1 + bool(panels)])
    left = figure.add_subplot(grid[0, :2])
    for colour, (name, label) in zip(COLOURS, CURVES.items(), strict=False):
        _draw(left, results, name, label, colour)
    left.set_title("accuracy on test images", loc="left", fontsize=10, color=INK)
    left.set_ylim(0.0, 1.02)
    left.legend(frameon=False, fontsize=9)
    _matrix(figure, figure.add_subplot(grid[0, 2:]), results)
    for place, (name, label) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[1, place])
        _draw(axes, results, name, label, COLOURS[2 + place])
        axes.set_title(label, loc="left", fontsize=10, color=INK)
    num = len(results["seeds"])
    seeds = f"{num} seeds, band: standard deviation" if num > 1 else "one seed"
    learner = results["config"]["learner"]["kind"]
    title = f"{results['name']}: {results['stream']}, {learner}, {seeds}"
    figure.suptitle(plain(title), color=INK, fontsize=12, fontweight="bold")
    save_png(figure, path)


def _draw(axes: Axes, results: Mapping[str, Any], name: str, label: str, colour: str) -> None:
    rows = np.asarray([table[name] for table in results["per_seed"].values()])
    x, mean = np.asarray(results["classes"]), rows.mean(0)
    axes.plot(x, mean, color=colour, linewidth=1.6, zorder=3, label=label, marker=".")
    if len(rows) > 1:
        spread = rows.std(0, ddof=1)
        axes.fill_between(
            x, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0, zorder=2
        )
    axes.set_xlabel("classes of the task")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    clean(axes)


def _matrix(figure: Figure, axes: Axes, results: Mapping[str, Any]) -> None:
    """Accuracy after each task on the classes of each; empty where they have not come."""
    table = np.array(results["matrix"], dtype=np.float64)
    image = axes.imshow(table, vmin=0.0, vmax=1.0, cmap="viridis")
    figure.colorbar(image, ax=axes, shrink=0.8)
    axes.set_title(
        "accuracy by the task that a class came with", loc="left", fontsize=10, color=INK
    )
    axes.set_xlabel("classes of task")
    axes.set_ylabel("after task")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
