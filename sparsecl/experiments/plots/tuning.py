"""The curves of a tuning: a measure against the value that was tried, a line for each arm."""

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.plots.lines import WIDTH
from sparsecl.experiments.plots.points import axis_label
from sparsecl.experiments.plots.style import COLOURS, INK, clean, plain


def tuning_figure(study: Study) -> Figure | None:
    """Means over the tuning seeds, ringed where a value was taken. None if there is no tuning, or
    it is of several keys: a line would join trials that differ in more than one."""
    tuning = study.plan.tuning
    if tuning is None or len(tuning.keys) != 1:
        return None
    key = next(iter(tuning.keys))
    figure = Figure(figsize=(0.75 * WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    for index, one in enumerate(tuning.arms):
        colour = COLOURS[index % len(COLOURS)]
        known = [(t.values[key], t.mean) for t in one.trials if t.mean is not None]
        x, y = zip(*known, strict=True)
        style = "-" if index < len(COLOURS) else "--"
        label = plain(study.plan.arm(one.arm).label)
        axes.plot(x, y, f"{style}o", color=colour, markersize=4, linewidth=1.5, label=label)
        taken = one.taken[key]
        axes.plot(taken, dict(known)[taken], "o", ms=12, mfc="none", mec=colour, mew=1.6)
    values = tuning.keys[key]
    if values[0] > 0:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
    axes.set_xlabel(plain(key), fontsize=9)
    axes.set_ylabel(axis_label(tuning.config.by), fontsize=9)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    clean(axes)
    return figure
