"""Loss against density for chains of pruning: tickets and their controls, a line each."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import Comparison
from sparsecl.experiments.plots.lines import WIDTH
from sparsecl.experiments.plots.points import axis_label, draw_level
from sparsecl.experiments.plots.style import INK, MARKERS, clean, line_style, plain
from sparsecl.experiments.study.study_plan import Arm

ROLES = {"arm": "", "one_shot": "one shot", "random": "random mask", "reinit": "other weights"}
"""Role of an arm -> what its line is called."""


def tickets_figure(study: Study, comparison: Comparison) -> Figure | None:
    """The primary measure against density, a panel for each size of the model. None without arms
    that are tickets of two densities."""
    sizes = list(dict.fromkeys(arm.size for arm in study.plan.arms))
    drawn = {size: _series(study, comparison, size) for size in sizes}
    drawn = {size: series for size, series in drawn.items() if series}
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 4.4 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axes, (size, series) in zip(panels, drawn.items(), strict=True):
        for index, (label, arms) in enumerate(series.items()):
            _draw(axes, comparison, study.plan.analysis.metrics[0], label, arms, index)
        _finish(axes, study, comparison, size, series)
    return figure


def _series(study: Study, comparison: Comparison, size: str | None) -> dict[str, list[Arm]]:
    """Label -> arms by density: those of a chain, and of each of its controls."""
    measure, found = study.plan.analysis.metrics[0], dict[str, list[Arm]]()
    for arm in study.plan.arms:
        if arm.kind != "ticket" or arm.size != size or arm.role not in ROLES:
            continue
        if comparison.figures[arm.name, measure].seeds:
            chain = (arm.of or arm.name).rpartition(".")[0] or arm.name
            label = chain if arm.role == "arm" else f"{chain}: {ROLES[arm.role]}"
            found.setdefault(label, []).append(arm)
    if all(len(arms) < 2 for arms in found.values()):
        return {}
    return {label: sorted(arms, key=lambda arm: arm.density) for label, arms in found.items()}


def _draw(
    axes: Axes,
    comparison: Comparison,
    measure: str,
    label: str,
    arms: Sequence[Arm],
    index: int,
) -> None:
    (colour, dash), marker = line_style(index), MARKERS[index % len(MARKERS)]
    means = []
    for arm in arms:
        figure = comparison.figures[arm.name, measure]
        axes.plot(
            [arm.density] * len(figure.values),
            figure.values,
            marker,
            color=colour,
            markersize=4,
            markeredgewidth=0,
            alpha=0.4,
        )
        assert figure.estimate is not None
        means.append(figure.estimate.mean)
    axes.plot(
        [arm.density for arm in arms],
        means,
        color=colour,
        linestyle=dash,
        linewidth=1.6,
        marker=marker,
        markersize=6,
        label=plain(label),
    )


def _finish(
    axes: Axes,
    study: Study,
    comparison: Comparison,
    size: str | None,
    series: dict[str, list[Arm]],
) -> None:
    measure = study.plan.analysis.metrics[0]
    for arm in study.plan.arms:
        if study.plan.is_reference(arm) and arm.size == size:
            draw_level(axes, comparison.figures[arm.name, measure], plain(arm.label))
    axes.set_xscale("log")
    densities = sorted({round(arm.density, 4) for arms in series.values() for arm in arms})
    axes.set_xticks(densities, [f"{density:.2g}" for density in densities])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("density of the masked matrices (log scale)", fontsize=9)
    axes.set_ylabel(axis_label(measure), fontsize=9)
    axes.legend(
        frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    clean(axes)
