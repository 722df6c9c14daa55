"""Figures of a study with one point a seed: arms, density, level reached, trade-offs, cost."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import Comparison
from sparsecl.experiments.findings.compare import Figure as Values
from sparsecl.experiments.findings.trends import INTERFERENCE_FIGURES, DensityTrend, Front, Trends
from sparsecl.experiments.plots.lines import WIDTH, arm_style
from sparsecl.experiments.plots.style import (
    COLOURS,
    FAINT,
    INK,
    MARKERS,
    clean,
    legend_above,
    plain,
)
from sparsecl.experiments.study.measures import MEASURES
from sparsecl.experiments.study.study_plan import Arm


def arms_figure(
    study: Study, comparison: Comparison, arms: Sequence[Arm], measures: Sequence[str]
) -> Figure | None:
    """One line an arm: every seed as a point, the mean and its interval."""
    if not any(comparison.figures[arm.name, m].seeds for arm in arms for m in measures):
        return None
    figure = Figure(figsize=(WIDTH, 0.34 * len(arms) + 1.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(measures), sharey=True))
    for axes, measure in zip(panels, measures, strict=True):
        for row, arm in enumerate(arms):
            _draw_row(axes, study, comparison.figures[arm.name, measure], row)
        # In two lines: more than two panels are too narrow for one.
        axes.set_xlabel(axis_label(measure).replace(" (", "\n("), fontsize=9)
        _rows(axes, arms)
    return figure


def _draw_row(axes: Axes, study: Study, figure: Values, row: int) -> None:
    colour, _ = arm_style(study, figure.arm)
    axes.plot(figure.values, [row] * len(figure.values), "o", color=colour, ms=5, mew=0, alpha=0.4)
    if figure.estimate is None:
        axes.annotate(
            "no value",
            (0.02, row),
            xycoords=("axes fraction", "data"),
            va="center",
            color=INK,
            fontsize=8,
        )
        return
    interval = figure.estimate.t
    if interval is not None:
        axes.plot([interval.low, interval.high], [row, row], color=colour, linewidth=2.2)
    axes.plot(figure.estimate.mean, row, "|", color=colour, markersize=15, markeredgewidth=2.6)


def _rows(axes: Axes, arms: Sequence[Arm]) -> None:
    axes.set_yticks(range(len(arms)), [plain(arm.label) for arm in arms], fontsize=9)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    clean(axes)
    axes.margins(x=0.08)


def axis_label(measure: str) -> str:
    """Name, unit and direction."""
    found = MEASURES[measure]
    return f"{measure}, {found.unit} ({found.better} is better)"


def level_figure(study: Study, comparison: Comparison, arms: Sequence[Arm]) -> Figure | None:
    """Forgetting against the loss that was reached: a model that learned less has less to lose."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    drawn = [_draw_cloud(axes, study, comparison, arm, ("learned_loss", "F_last")) for arm in arms]
    if not any(drawn):
        return None
    axes.set_xlabel(
        "learned_loss, nats per token: loss right after a domain's own training "
        "(further left: learned more)",
        fontsize=9,
    )
    axes.set_ylabel(axis_label("F_last"), fontsize=9)
    _arm_legend(axes)
    clean(axes)
    return figure


def _draw_cloud(
    axes: Axes, study: Study, comparison: Comparison, arm: Arm, measures: tuple[str, str]
) -> bool:
    """Seeds of an arm as faint points, their mean with both intervals as a cross."""
    x, y = (comparison.figures[arm.name, measure] for measure in measures)
    both = [seed for seed in x.seeds if seed in y.seeds]
    if not both or x.estimate is None or y.estimate is None:
        return False
    colour, marker = _look(study, arm)
    axes.plot(
        [x.values[x.seeds.index(seed)] for seed in both],
        [y.values[y.seeds.index(seed)] for seed in both],
        marker,
        color=colour,
        markersize=5,
        markeredgewidth=0,
        alpha=0.4,
    )
    for figure, horizontal in ((x, True), (y, False)):
        interval = figure.estimate.t if figure.estimate else None
        if interval is not None:
            ends = [interval.low, interval.high]
            middle = [y.estimate.mean] * 2 if horizontal else [x.estimate.mean] * 2
            axes.plot(*((ends, middle) if horizontal else (middle, ends)), color=colour, lw=1.4)
    label = plain(arm.label)
    axes.plot(x.estimate.mean, y.estimate.mean, marker, color=colour, markersize=8, label=label)
    return True


def _look(study: Study, arm: Arm) -> tuple[str, str]:
    index = [other.name for other in study.plan.arms].index(arm.name)
    # Shifted by one where the colours begin again, so that no two arms share both.
    return arm_style(study, arm.name)[0], MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def _arm_legend(axes: Axes) -> None:
    axes.legend(
        frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )


def density_figure(
    study: Study, comparison: Comparison, trends: Sequence[DensityTrend]
) -> Figure | None:
    """F_last against density on a log axis, the fitted line with its band, dense as a level."""
    known = [trend for trend in trends if trend.relation is not None]
    if not known:
        return None
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    for index, trend in enumerate(known):
        _draw_trend(axes, study, comparison, trend, index)
    for arm in study.plan.arms:
        if study.plan.is_reference(arm):
            draw_level(axes, comparison.figures[arm.name, "F_last"], plain(arm.label))
    axes.set_xscale("log")
    densities = sorted({arm.density for t in known for arm in map(study.plan.arm, t.arms)})
    axes.set_xticks(densities, [f"{density:.3g}" for density in densities])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("density of the masked matrices (log scale)", fontsize=9)
    axes.set_ylabel(axis_label("F_last"), fontsize=9)
    _arm_legend(axes)
    clean(axes)
    return figure


def draw_level(axes: Axes, figure: Values, label: str) -> None:
    """The mean of a reference as a level, with its interval."""
    if figure.estimate is None:
        return
    dashes = (0, (5, 2))
    axes.axhline(figure.estimate.mean, color=INK, linewidth=1.2, linestyle=dashes, label=label)
    interval = figure.estimate.t
    if interval is not None:
        axes.axhspan(interval.low, interval.high, color=FAINT, alpha=0.35, lw=0)


def _draw_trend(
    axes: Axes, study: Study, comparison: Comparison, trend: DensityTrend, index: int
) -> None:
    relation, colour = trend.relation, COLOURS[index % len(COLOURS)]
    assert relation is not None
    for name in trend.arms:
        figure = comparison.figures[name, "F_last"]
        density = study.plan.arm(name).density
        axes.plot(
            [density] * len(figure.values), figure.values, "o", color=colour, ms=5, mew=0, alpha=0.4
        )
        if figure.estimate is not None:
            axes.plot(density, figure.estimate.mean, "D", color=colour, markersize=6)
    label = f"{plain(trend.kind)}: fit over {relation.num_seeds} seeds"
    axes.plot(relation.grid, relation.line, color=colour, linewidth=1.6, label=label)
    if relation.band is not None:
        low, high = zip(*((b.low, b.high) for b in relation.band), strict=True)
        axes.fill_between(relation.grid, low, high, color=colour, alpha=0.18, lw=0)


def pareto_figure(study: Study, fronts: Sequence[Front]) -> Figure | None:
    """One panel for each trade-off: arms as points, those on the front joined and ringed."""
    if not fronts:
        return None
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(fronts)))
    for axes, front in zip(panels, fronts, strict=True):
        on_front = []
        for point in front.points:
            x, y = point.values
            if x is None or y is None:
                continue
            arm = study.plan.arm(point.name)
            colour, marker = _look(study, arm)
            axes.plot(x, y, marker, color=colour, markersize=7, label=plain(arm.label), zorder=3)
            if point.on_front:
                on_front.append((x, y))
                ring = {"markerfacecolor": "none", "markeredgecolor": INK, "markersize": 13}
                axes.plot(x, y, "o", **ring, zorder=2)
        if on_front:
            axes.plot(*zip(*sorted(on_front), strict=True), color=FAINT, linewidth=1.2, zorder=1)
        for label, measure in zip((axes.set_xlabel, axes.set_ylabel), front.measures, strict=True):
            label(f"{measure}, {MEASURES[measure].unit}", fontsize=9)
        clean(axes)
        axes.margins(0.12)
    legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def interference_figure(study: Study, trends: Trends) -> Figure | None:
    """Means over pairs of domains against density: points are seeds."""
    names = [n for n in INTERFERENCE_FIGURES if any(f.name == n for f in trends.interference)]
    names = names[:3]
    if not names:
        return None
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names)))
    for axes, name in zip(panels, names, strict=True):
        for item in trends.interference:
            if item.name == name and item.values:
                arm = study.plan.arm(item.arm)
                colour, marker = _look(study, arm)
                at = [arm.density] * len(item.values)
                axes.plot(at, item.values, marker, color=colour, ms=5, mew=0, alpha=0.4)
                mean = float(np.mean(item.values))
                axes.plot(arm.density, mean, marker, color=colour, ms=8, label=plain(arm.label))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("density (log scale)", fontsize=9)
        unit = INTERFERENCE_FIGURES[name][0]
        axes.set_ylabel(f"{name}, {unit}" if unit else name, fontsize=9)
        clean(axes)
    legend_above(figure, *panels[0].get_legend_handles_labels())
    return figure


def cost_figure(study: Study, comparison: Comparison, arms: Sequence[Arm]) -> Figure | None:
    """What a run of each arm takes: time as measured; tokens, FLOPs and parameters as planned."""
    if not arms:
        return None
    figure = Figure(figsize=(WIDTH, 0.3 * len(arms) + 1.2), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    seconds = [comparison.figures[arm.name, "seconds"].estimate for arm in arms]
    bars = (
        ("wall time, s", [0.0 if one is None else one.mean for one in seconds]),
        ("tokens", [float(arm.tokens) for arm in arms]),
        ("FLOPs", [float(arm.flops) for arm in arms]),
        ("live parameters", [float(arm.live) for arm in arms]),
    )
    for axes, (name, values) in zip(panels, bars, strict=True):
        colours = [arm_style(study, arm.name)[0] for arm in arms]
        axes.barh(range(len(arms)), values, height=0.62, color=colours)
        for row, value in enumerate(values):
            text = EngFormatter(sep="", places=1)(value) if value else "-"
            axes.annotate(
                text,
                (value, row),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=INK,
            )
        axes.set_xlabel(name, fontsize=9)
        _rows(axes, arms)
        axes.set_xticks([])
        axes.set_xlim(0, 1.3 * max(values, default=1.0) or 1.0)
        axes.grid(visible=False)
    return figure
