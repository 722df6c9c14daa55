"""Figures of a study of streams: curves over the tasks of all arms, and one point a seed."""

from matplotlib.figure import Figure

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import Comparison
from sparsecl.experiments.findings.stream_curves import LEARNED, OF_A_TASK, WINDOW, stream_curve
from sparsecl.experiments.plots.lines import draw_arms, legend, make_panels
from sparsecl.experiments.plots.points import arms_figure
from sparsecl.experiments.plots.streams import LEARNED as WORDS
from sparsecl.experiments.plots.streams import PANELS
from sparsecl.experiments.plots.study import StudyFigure, interval_text
from sparsecl.experiments.plots.style import INK, freeze
from sparsecl.experiments.study.stream_measures import learned_of

MAX_MEASURES = 3
"""In the figure of arms, beside each other."""


def stream_figures(study: Study, comparison: Comparison) -> list[StudyFigure]:
    """Draw everything. Same records, same figures."""
    interval = interval_text(study, "t interval over seeds")
    measures = list(dict.fromkeys([*study.plan.analysis.metrics, "last_third", "lost", "dead"]))
    arms = list(study.plan.arms)
    made = (
        (
            "arms",
            f"Points: seeds. Upright stroke: their mean; line: {interval}.",
            arms_figure(study, comparison, arms, measures[:MAX_MEASURES]),
        ),
        (
            "tasks",
            f"Line: mean over seeds; band: {interval}, pointwise. Accuracy and p(Z) are means over "
            f"{WINDOW} tasks (a quarter of all, if fewer), at their middle; the other figures are "
            "taken before each task and after the last, on the first samples of the task to come.",
            tasks_figure(study),
        ),
    )
    return [StudyFigure(name, caption, freeze(figure)) for name, caption, figure in made if figure]


def tasks_figure(study: Study) -> Figure | None:
    """A panel for each figure, with all arms in it; None if no run is done."""
    learned = next((learned_of(r.curves) for r in study.results if r.curves), None)
    if learned is None:
        return None
    names = {LEARNED: WORDS[learned], "dead": "", "weight_mean_abs": "", "erank": ""}
    names |= {"stable_rank_F": "stable rank of a layer", "p": "p(Z): gain of one update"}
    curves = {
        name: {arm.name: stream_curve(study, arm.name, name) for arm in study.plan.arms}
        for name in names
    }
    drawn = [name for name, by_arm in curves.items() if any(by_arm.values())]
    figure, panels = make_panels(len(drawn), 2.9)
    for axes, name in zip(panels, drawn, strict=True):
        draw_arms(axes, study, study.plan.arms, curves[name])
        axes.set_title(names[name] or PANELS[name], loc="left", fontsize=9.5, color=INK)
        axes.set_xlabel("task" if name in OF_A_TASK else "tasks learned", fontsize=9)
    legend(figure, study, study.plan.arms)
    return figure
