"""Forgetting against learning and movement, for families of arms, or of trials of one arm, that
differ in the rate alone."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecl.experiments.findings.frontier import Family
from sparsecl.experiments.plots.lines import WIDTH
from sparsecl.experiments.plots.points import axis_label
from sparsecl.experiments.plots.style import INK, MARKERS, clean, line_style, plain

Draw = Callable[[Axes, Family, int], None]


def frontier_figure(families: Sequence[Family]) -> Figure | None:
    """Learned loss against forgetting, a panel for each size of the model. None without runs."""
    return _figure([one for one in families if one.points], "learned_loss", _draw)


def movement_figure(families: Sequence[Family]) -> Figure | None:
    """KL against forgetting, one point a run, likewise. None if no movement was measured."""
    drawn = [
        one for one in families if any(p.moved is not None and p.moved > 0 for p in one.points)
    ]
    figure = _figure(drawn, "KL", _draw_moved)
    for axes in figure.axes if figure else ():
        axes.set_xscale("log")
    return figure


def _figure(drawn: Sequence[Family], measure: str, draw: Draw) -> Figure | None:
    if not drawn:
        return None
    sizes = list(dict.fromkeys(family.size for family in drawn))
    figure = Figure(figsize=(WIDTH, 4.4 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), 1, squeeze=False)[:, 0]
    for axes, size in zip(panels, sizes, strict=True):
        for index, family in enumerate(one for one in drawn if one.size == size):
            draw(axes, family, index)
        axes.set_xlabel(axis_label(measure), fontsize=9)
        axes.set_ylabel(axis_label("F_last"), fontsize=9)
        axes.legend(
            frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
        clean(axes)
    return figure


def _draw(axes: Axes, family: Family, index: int) -> None:
    """Seeds, the means at each rate in the order of the rates, and the mean frontier."""
    (colour, dash), marker = line_style(index), MARKERS[index % len(MARKERS)]
    axes.plot(
        [point.learned for point in family.points],
        [point.forgotten for point in family.points],
        marker,
        color=colour,
        markersize=3,
        markeredgewidth=0,
        alpha=0.35,
    )
    means = {
        rate: np.mean([(p.learned, p.forgotten) for p in family.points if p.rate == rate], axis=0)
        for rate in dict.fromkeys(point.rate for point in family.points)
    }
    x, y = zip(*means.values(), strict=True)
    axes.plot(x, y, marker, color=colour, markersize=6, label=plain(family.label))
    axes.plot(x, y, color=colour, linewidth=0.8, linestyle=(0, (1, 2)))
    curve = family.mean_curve()
    if curve is not None:
        axes.plot(*curve, color=colour, linewidth=1.8, linestyle=dash)
    if family.chosen in means:
        axes.plot(*means[family.chosen], "o", ms=13, mfc="none", mec=colour, mew=1.4)


def _draw_moved(axes: Axes, family: Family, index: int) -> None:
    """Runs as points; the mean of each rate, joined in the order of the rates."""
    (colour, dash), marker = line_style(index), MARKERS[index % len(MARKERS)]
    found = [(p.rate, p.moved, p.forgotten) for p in family.points if p.moved and p.moved > 0]
    _, moved, forgotten = zip(*found, strict=True)
    axes.plot(
        moved,
        forgotten,
        marker,
        color=colour,
        markersize=5,
        markeredgewidth=0,
        alpha=0.5,
        label=plain(family.label),
    )
    # Means of the logarithm, as the axis has it.
    means = [
        np.mean([(np.log(x), y) for other, x, y in found if other == rate], axis=0)
        for rate in dict.fromkeys(rate for rate, *_ in found)
    ]
    x, y = zip(*means, strict=True)
    axes.plot(np.exp(x), y, color=colour, linewidth=1.2, linestyle=dash)
