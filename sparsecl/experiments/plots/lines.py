"""Figures of a study over its phases: forgetting curves, crossover, plasticity."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.curves import (
    Curve,
    domain_curve,
    domains_of,
    order_of,
    plasticity_curve,
    plasticity_names,
    round_curve,
)
from sparsecl.experiments.findings.trends import ArmCrossover
from sparsecl.experiments.plots.style import GRID, INK, clean, legend_above, line_style, plain
from sparsecl.experiments.study.study_plan import Arm

WIDTH = 10.0
"""Inches; all figures of a report are equally wide."""

MAX_SEED_LINES = 60
"""Single seeds are drawn up to so many lines a panel: more would hide the means."""

PANELS = (
    ("final_erank", "effective rank, final hidden state"),
    ("erank", "effective rank, feed-forward units"),
    ("stable_rank_F", "stable rank, feed-forward units"),
    ("tau_dormant_0.025", "dormant units, share (tau 0.025)"),
    ("dead", "dead units, share"),
    ("weight_mean_abs", "mean |w| of live weights"),
    ("grad_norm", "gradient norm, end of phase"),
    ("p", "p(Z): gain of one update"),
)
"""Figures of the plasticity panel that are drawn, if they were measured; the table has all."""


def curves_figure(study: Study, arms: Sequence[Arm]) -> Figure | None:
    """Validation loss of each domain over the phases: mean, band, single seeds; own phases grey."""
    domains = domains_of(study)
    curves = {d: {arm.name: domain_curve(study, arm.name, d) for arm in arms} for d in domains}
    if not any(curve for by_arm in curves.values() for curve in by_arm.values()):
        return None
    figure, panels = make_panels(len(domains), 2.9)
    for axes, domain in zip(panels, domains, strict=True):
        for phase, index in enumerate(order_of(study)):
            if domains[index] == domain:
                axes.axvspan(phase, phase + 1, color=GRID, lw=0, zorder=0)
        draw_arms(axes, study, arms, curves[domain])
        _cut_the_fall(axes, study, domain, [c for c in curves[domain].values() if c])
        axes.set_title(plain(domain), loc="left", fontsize=10, color=INK)
        axes.set_xlabel("phases trained", fontsize=9)
        axes.set_ylabel("loss, nats per token", fontsize=9)
    legend(figure, study, arms)
    return figure


def _cut_the_fall(axes: Axes, study: Study, domain: str, curves: Sequence[Curve]) -> None:
    """Let the axis span what follows the domain's first training: the fall from the loss of an
    untrained model is ten times what the figure is about. A domain that nothing follows has the
    fall alone, and keeps it."""
    trained = [domains_of(study)[index] for index in order_of(study)]
    if domain not in trained[:-1]:
        return
    begin = trained.index(domain) + 1
    later = [curve.values[:, curve.x >= begin].ravel() for curve in curves]
    values = np.concatenate(later) if later else np.empty(0)
    if values.size:
        low, high = float(values.min()), float(values.max())
        margin = 0.08 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)


LEGEND_LETTERS = 22
"""In a line beside a figure: longer ones take its room."""


def crossover_figure(
    study: Study, arms: Sequence[Arm], found: Sequence[ArmCrossover], domain: str | None
) -> Figure | None:
    """Above: loss after each phase. Below: difference from the reference, its crossover marked."""
    curves = {arm.name: round_curve(study, arm.name, domain) for arm in arms}
    known = [item for item in found if item.curve == domain and item.result is not None]
    known = [item for item in known if item.arm in curves]
    if not known:
        return None
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    draw_arms(top, study, arms, curves)
    what = "mean of all domains" if domain is None else plain(domain)
    top.set_ylabel(f"loss, nats per token\n({what})", fontsize=9)
    bottom.axhline(0.0, color=INK, linewidth=0.9)
    for item in known:
        _draw_difference(bottom, study, item)
    several = "the reference of its size" if study.plan.sizes() else ""
    reference = several or plain(study.plan.arm(study.plan.analysis.reference).label)
    bottom.set_ylabel(f"loss minus that of\n{reference}, smoothed", fontsize=9)
    bottom.set_xlabel("phase after which it was measured (1 = the first)", fontsize=9)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    clean(bottom)
    side = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.15), "frameon": False}
    bottom.legend(fontsize=8.5, labelcolor=INK, **side)
    legend(figure, study, arms)
    return figure


def _draw_difference(axes: Axes, study: Study, item: ArmCrossover) -> None:
    """The smoothed difference with its band; a ring where it crosses."""
    result = item.result
    assert result is not None
    colour, dash = arm_style(study, item.arm)
    rounds = np.arange(result.first_round, result.last_round + 1)
    label = plain(study.plan.arm(item.arm).label)
    found = "" if result.why else ":\n" + "\n".join(textwrap.wrap(result.text(), LEGEND_LETTERS))
    if result.round is not None:
        found = f":\nround {result.round}" + ("" if result.stays else ",\nnot for good")
        at = result.smoothed[result.round - result.first_round]
        axes.axvline(result.round, color=colour, linewidth=0.9, linestyle=(0, (2, 2)), zorder=2)
        axes.plot(result.round, at, "o", color=colour, markersize=7, zorder=4)
    axes.plot(
        rounds,
        result.smoothed,
        color=colour,
        linestyle=dash,
        linewidth=1.8,
        zorder=3,
        label=f"{label}{found}",
    )
    if item.band is not None:
        axes.fill_between(rounds, *item.band, color=colour, alpha=0.15, lw=0, zorder=2)


def plasticity_figure(study: Study, arms: Sequence[Arm]) -> Figure | None:
    """One panel for each figure of the plasticity panel, over the phases; None without any."""
    measured = plasticity_names(study)
    drawn = [(name, title) for name, title in PANELS if name in measured]
    if not drawn:
        return None
    figure, panels = make_panels(len(drawn), 2.4)
    for axes, (name, title) in zip(panels, drawn, strict=True):
        draw_arms(
            axes, study, arms, {arm.name: plasticity_curve(study, arm.name, name) for arm in arms}
        )
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
        axes.set_xlabel("phases trained", fontsize=9)
    legend(figure, study, arms)
    return figure


def arm_style(study: Study, name: str) -> tuple[str, Any]:
    """Colour and dash of an arm, the same in every figure of a study."""
    return line_style([arm.name for arm in study.plan.arms].index(name))


def make_panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, three in a row at most."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.5), layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel())
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def draw_arms(
    axes: Axes, study: Study, arms: Sequence[Arm], curves: dict[str, Curve | None]
) -> None:
    """Mean with its band for each arm, single seeds faintly behind."""
    num_lines = sum(len(curve.seeds) for curve in curves.values() if curve)
    for arm in arms:
        curve = curves.get(arm.name)
        if curve is None:
            continue
        colour, dash = arm_style(study, arm.name)
        if num_lines <= MAX_SEED_LINES:
            axes.plot(curve.x, curve.values.T, color=colour, linewidth=0.5, alpha=0.3, zorder=2)
        if curve.band is not None:
            axes.fill_between(curve.x, *curve.band, color=colour, alpha=0.2, lw=0, zorder=2)
        axes.plot(curve.x, curve.mean, color=colour, linestyle=dash, linewidth=1.8, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    clean(axes)


def legend(figure: Figure, study: Study, arms: Sequence[Arm]) -> None:
    """Lines and names of the arms that have a run to draw, above the panels."""
    handles, arms = [], [arm for arm in arms if study.done(arm.name)]
    for arm in arms:
        colour, dash = arm_style(study, arm.name)
        handles.append(Line2D([], [], color=colour, linestyle=dash, linewidth=2))
    legend_above(figure, handles, [plain(arm.label) for arm in arms])
