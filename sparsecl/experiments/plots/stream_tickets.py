"""Tickets of networks that have learned many tasks: accuracy against density, a colour for each
number of tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from sparsecl.experiments.plots import style
from sparsecl.experiments.plots.style import COLOURS, INK, clean, plain, save_png

KINDS = {"ticket": ("-", "o"), "random": ((0, (5, 1.5)), "s")}
"""Line and marker of each."""


def stream_tickets_plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw what streams/tickets.py gives as PNG: means over seeds, bands of their standard
    deviation."""
    figure = Figure(figsize=(8.0, 5.0), dpi=style.DPI, layout="constrained")
    axes, x = figure.add_subplot(), np.asarray(found["densities"])
    for place, (n, kinds) in enumerate(found["after"].items()):
        colour = COLOURS[place % len(COLOURS)]
        for kind, (dash, marker) in KINDS.items():
            rows = np.asarray(kinds[kind])
            mean = rows.mean(0)
            label = f"after {n} tasks: {'ticket' if kind == 'ticket' else 'random mask'}"
            axes.plot(x, mean, color=colour, linestyle=dash, marker=marker, markersize=4,
                      linewidth=1.6, label=label, zorder=3)  # fmt: skip
            if len(rows) > 1:
                spread = rows.std(0, ddof=1)
                axes.fill_between(
                    x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0, zorder=2
                )
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:.2g}" for value in x])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_xaxis()
    axes.set_xlabel("share of hidden weights that are left")
    axes.set_ylabel(found["measure"].replace("_", " "))
    axes.legend(frameon=False, fontsize=9)
    clean(axes)
    num = len(found["seeds"])
    seeds = f"{num} seeds, band: standard deviation" if num > 1 else "one seed"
    title = f"{found['name']}: tickets of task {found['probe_task'] + 1} of {found['stream']}"
    axes.set_title(plain(f"{title}, {seeds}"), loc="left", fontsize=10, color=INK)
    save_png(figure, path)
