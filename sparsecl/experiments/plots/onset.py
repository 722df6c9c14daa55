"""Loss on a new domain against the phases before it: does a model lose its plasticity, and when?"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from sparsecl.experiments.findings.curves import Curve
from sparsecl.experiments.findings.onset import ProbedArm
from sparsecl.experiments.plots.lines import WIDTH
from sparsecl.experiments.plots.style import INK, MARKERS, clean, line_style, plain

ONSETS = (("fresh", 14), ("best", 8))
"""Which onset, and the size of its mark: a large ring and a small dot."""


def onset_figure(probed: Sequence[ProbedArm], margin: float) -> Figure | None:
    """Left the loss of the probes, right the same minus the fresh model; a row for each size."""
    drawn = [one for one in probed if one.loss is not None]
    if not drawn:
        return None
    sizes = list(dict.fromkeys(one.arm.size for one in drawn))
    figure = Figure(figsize=(WIDTH, 3.5 * len(sizes)), layout="constrained")
    rows = figure.subplots(len(sizes), 2, squeeze=False)
    for (left, right), size in zip(rows, sizes, strict=True):
        arms = [one for one in drawn if one.arm.size == size]
        right.axhline(0.0, color=INK, linewidth=0.9)
        if margin:
            right.axhline(margin, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        for index, one in enumerate(arms):
            _draw(left, one.loss, index, plain(one.arm.label))
            _draw(right, one.change, index, "")
            _mark(right, one, index)
        ticks = sorted({x for one in arms if one.loss is not None for x in one.loss.x})
        title = f"probe: {arms[0].domain}" + (f", {size}" if size else "")
        left.set_title(plain(title), loc="left", fontsize=10, color=INK)
        left.set_ylabel("loss at the end of a probe,\nnats per token", fontsize=9)
        right.set_ylabel("the same, minus that\nof a fresh model", fontsize=9)
        for axes in (left, right):
            _phases(axes, ticks)
        right.legend(*left.get_legend_handles_labels(), **LEGEND)
    return figure


LEGEND = {
    "loc": "upper left",
    "bbox_to_anchor": (1.0, 1.0),
    "frameon": False,
    "fontsize": 9,
    "labelcolor": INK,
}


def _draw(axes: Axes, curve: Curve | None, index: int, label: str) -> None:
    if curve is None:
        return
    colour, dash = line_style(index)
    axes.plot(curve.x, curve.values.T, color=colour, linewidth=0.5, alpha=0.3, zorder=2)
    if curve.band is not None:
        axes.fill_between(curve.x, *curve.band, color=colour, alpha=0.2, lw=0, zorder=2)
    line = {"color": colour, "linestyle": dash, "linewidth": 1.8, "markersize": 4}
    axes.plot(curve.x, curve.mean, marker=MARKERS[index % len(MARKERS)], label=label, **line)


def _mark(axes: Axes, one: ProbedArm, index: int) -> None:
    """A ring at the onset against a fresh model, a dot inside it at that against the best."""
    colour, _ = line_style(index)
    for name, size in ONSETS:
        found = getattr(one, name)
        if one.change is None or found is None or found.after is None:
            continue
        height = float(one.change.mean[list(one.change.x).index(found.after)])
        axes.plot(
            found.after,
            height,
            "o",
            color=colour,
            markerfacecolor="none" if name == "fresh" else colour,
            markeredgewidth=1.6,
            markersize=size,
            zorder=4,
        )


def _phases(axes: Axes, ticks: Sequence[float]) -> None:
    """Phases before the probe, from 0 on, so spread out that 1, 10 and 100 are equally far."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel("phases of the stream before the probe (0 = fresh model)", fontsize=9)
    clean(axes)
