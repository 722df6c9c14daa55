"""The picture of a run on the slippery Ant: returns, and the signs of lost plasticity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sparsecl.experiments.plots import style
from sparsecl.experiments.plots.style import COLOURS, INK, clean, plain, save_png

PANELS = {
    "dead": "dead units, share",
    "dormant": "dormant units, share",
    "erank": "effective rank of a layer",
    "weight_mean_abs": "mean |w|",
}


def ant_plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw results.json of the slippery Ant as PNG: a colour for each seed; a point is an episode,
    a line the mean of a friction, which is written above it where there is one seed."""
    figure = Figure(figsize=(11.0, 7.0), dpi=style.DPI, layout="constrained")
    grid = figure.add_gridspec(2, len(PANELS), height_ratios=(1.5, 1.0))
    upper = figure.add_subplot(grid[0, :])
    seeds = list(results["per_seed"].values())
    for k, one in enumerate(seeds):
        colour, tasks, episodes = COLOURS[k % len(COLOURS)], one["tasks"], one["episodes"]
        upper.plot(
            episodes["step"], episodes["episode_return"], ".", color=colour, alpha=0.25, ms=3
        )
        first = 0
        for step, mean, value in zip(
            tasks["step"], tasks["mean_return"], tasks["friction"], strict=True
        ):
            upper.plot([first, step], [mean, mean], color=colour, linewidth=2.0)
            if len(seeds) == 1:
                upper.annotate(
                    f"{value:.3g}", (first, 1.0), (3, -3), xycoords=("data", "axes fraction"),
                    textcoords="offset points", va="top", fontsize=8, color=INK,
                )  # fmt: skip
                upper.axvline(first, color=INK, alpha=0.2, linewidth=0.8)
            first = step
    upper.set_title("return of an episode", loc="left", fontsize=10, color=INK)
    upper.set_xlabel("steps of the environment")
    clean(upper)
    for place, (name, label) in enumerate(PANELS.items()):
        axes = figure.add_subplot(grid[1, place])
        for k, one in enumerate(seeds):
            for prefix, line in (("", "-"), ("value_", ":")):
                axes.plot(
                    one["panel"]["step"], one["panel"][prefix + name], line,
                    color=COLOURS[k % len(COLOURS)], linewidth=1.4,
                )  # fmt: skip
        axes.set_title(label, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("policy, dotted: value")
        axes.tick_params(axis="x", labelrotation=30)
        clean(axes)
    num = len(seeds)
    title = f"{results['name']}: {results['stream']}, {f'{num} seeds' if num > 1 else 'one seed'}"
    figure.suptitle(plain(title), color=INK, fontsize=12, fontweight="bold")
    save_png(figure, path)
