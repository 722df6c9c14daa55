"""Optimal density against the size of the model."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import Comparison
from sparsecl.experiments.findings.optima import SizeTrend
from sparsecl.experiments.plots.lines import WIDTH
from sparsecl.experiments.plots.points import axis_label
from sparsecl.experiments.plots.style import COLOURS, INK, clean, plain


def optima_figure(
    study: Study, comparison: Comparison, trends: Sequence[SizeTrend]
) -> Figure | None:
    """A row for each measure. Left: the measure against density, a line for each size, the best
    density ringed. Right: the best density against the parameters of the dense model."""
    known = [trend for trend in trends if any(item.optimum for item in trend.optima)]
    if not known:
        return None
    figure = Figure(figsize=(WIDTH, 2.9 * len(known)), layout="constrained")
    rows = figure.subplots(len(known), 2, squeeze=False)
    for (left, right), trend in zip(rows, known, strict=True):
        _draw_curves(left, study, comparison, trend)
        _draw_optima(right, trend)
    return figure


def _draw_curves(axes: Axes, study: Study, comparison: Comparison, trend: SizeTrend) -> None:
    for index, item in enumerate(trend.optima):
        colour = COLOURS[index % len(COLOURS)]
        points = []
        for name in item.arms:
            found = comparison.figures[name, trend.measure]
            density = study.plan.arm(name).density
            axes.plot(
                [density] * len(found.values), found.values, "o", color=colour, ms=3, alpha=0.3
            )
            if found.estimate is not None:
                points.append((density, found.estimate.mean))
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "-D", color=colour, markersize=4, linewidth=1.5, label=plain(item.size))
        if item.optimum is not None:
            best = (item.optimum.density, item.optimum.value)
            axes.plot(*best, "o", ms=13, mfc="none", mec=colour, mew=1.6)
    _density_axis(axes, trend, "x")
    axes.set_ylabel(axis_label(trend.measure).replace(" (", "\n("), fontsize=9)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    clean(axes)


def _draw_optima(axes: Axes, trend: SizeTrend) -> None:
    """Points with their intervals, and the fitted line."""
    known = [(n, item) for n, item in enumerate(trend.optima) if item.optimum is not None]
    for index, item in known:
        colour, best = COLOURS[index % len(COLOURS)], item.optimum
        assert best is not None
        if best.interval is not None:
            ends = [best.interval.low, best.interval.high]
            axes.plot([item.parameters] * 2, ends, color=colour, linewidth=2.2)
        axes.plot(item.parameters, best.density, "o", color=colour, markersize=8)
    if trend.slope is not None:
        x = np.log10([item.parameters for _, item in known])
        y = np.log10([item.optimum.density for _, item in known if item.optimum])
        line = y.mean() + trend.slope.slope * (x - x.mean())
        axes.plot(10**x, 10**line, color=INK, linewidth=1.0, linestyle=(0, (5, 2)))
    axes.set_xscale("log")
    axes.set_xticks([item.parameters for _, item in known])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.15)
    axes.set_xlabel("parameters of the dense model", fontsize=9)
    _density_axis(axes, trend, "y")
    clean(axes)


def _density_axis(axes: Axes, trend: SizeTrend, which: str) -> None:
    """A logarithmic axis with a tick at each density that was run."""
    densities = sorted({d for item in trend.optima if item.optimum for d in item.optimum.densities})
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_ticks(densities, [f"{density:.2g}" for density in densities], fontsize=8)
    axis.set_minor_formatter(NullFormatter())
    text = "density" if which == "x" else "best density"
    (axes.set_xlabel if which == "x" else axes.set_ylabel)(text, fontsize=9)
    if which == "y":
        axes.set_ylim(0.7 * densities[0], 1.4 * densities[-1])
