"""All figures of a study's report, in its order; those with nothing to show are left out."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import Comparison, sequential, unprobed
from sparsecl.experiments.findings.curves import domains_of, mean_matrix, num_phases, order_of
from sparsecl.experiments.findings.onset import MEASURE
from sparsecl.experiments.findings.trends import Trends
from sparsecl.experiments.plots import frontier, lines, matrices, optima, points, tickets
from sparsecl.experiments.plots.onset import onset_figure
from sparsecl.experiments.plots.style import freeze
from sparsecl.experiments.plots.tuning import tuning_figure
from sparsecl.experiments.study.measures import MEASURES
from sparsecl.experiments.study.study_plan import Arm
from sparsecl.metrics.bootstrap import MIN_SEEDS

MAX_LINES = 7
"""Arms in a figure of curves: as many as there are colours."""

TUNING = (
    "Means over the tuning seeds, which the test does not use; ringed: taken. A value without a "
    "point diverged."
)

TICKETS = (
    "What is left of pruned runs, trained again: faint points are seeds, lines go through their "
    "means. Dashed: the reference."
)

MOVEMENT = (
    "Points: runs. Further right: the model has moved further from where it was right after each "
    "domain's training (log scale). Line: through the means of each rate."
)

ONSET = (
    "A model that has learned so many phases of the stream learns a domain that the stream does "
    "not have. Dashed: the margin; ring: onset against a fresh model; dot: against its best probe."
)

MATRICES = (
    "Mean over seeds of the loss on each domain (columns), before training and after each phase "
    "(rows), in nats per token; one colour scale for all. Framed: the domain just trained. The "
    "reference comes first, then the others, the best one in front."
)
PARETO = (
    "Means over seeds; ringed and joined: arms that no other beats in both measures. Lower and "
    "further left is better."
)


@dataclass(frozen=True)
class StudyFigure:
    """A figure with the words under it."""

    name: str
    """Of its files, and of the place in the report that it belongs to."""
    caption: str
    figure: Figure


def study_figures(study: Study, comparison: Comparison, trends: Trends) -> list[StudyFigure]:
    """Draw everything. Same records, same figures."""
    arms = sequential(study.plan.arms)
    each = unprobed(study.plan.arms)
    shown = in_curves(study)
    interval = interval_text(study, "t interval over seeds")
    cut = "" if len(shown) == len(arms) else " Controls are left out here."
    core = study.plan.analysis.core
    made = [
        StudyFigure(
            name,
            f"{caption}{cut if name in ('curves', 'crossover', 'core', 'plasticity') else ''}",
            freeze(figure),
        )
        for name, caption, figure in (
            ("tuning", TUNING, tuning_figure(study)),
            (
                "arms",
                f"Points: seeds. Upright stroke: their mean; line: {interval}.",
                points.arms_figure(study, comparison, each, _in_arms(study)),
            ),
            (
                "curves",
                "Validation loss of each domain while all are trained in turn; grey: while the "
                f"domain itself is trained. Line: mean; band: {interval}; thin lines: seeds. The "
                "first fall from the untrained model's loss leaves the axis, except of the last "
                "domain.",
                lines.curves_figure(study, shown),
            ),
            (
                "level",
                f"Faint: seeds; large: mean over seeds; crosses: {interval}. An arm that learned "
                "less lies further right; it has less to forget.",
                points.level_figure(study, comparison, arms),
            ),
            ("matrices", MATRICES, _matrices(study, comparison, arms)),
            (
                "crossover",
                f"Above: loss after each phase, band: {interval}. Below: difference from the "
                "reference, moving average over 3 phases, with the same kind of band; below 0 the "
                "arm is better. Dot: a crossover that is shown.",
                lines.crossover_figure(study, shown, trends.crossovers, None),
            ),
            (
                "core",
                "The same for the core domain by itself.",
                lines.crossover_figure(study, shown, trends.crossovers, core) if core else None,
            ),
            ("pareto", PARETO, points.pareto_figure(study, trends.fronts)),
            ("frontier", _frontier_text(trends), frontier.frontier_figure(trends.families)),
            ("movement", MOVEMENT, frontier.movement_figure(trends.families)),
            (
                "density",
                f"Points: seeds; diamonds: means; line: fit, band: {interval}, pointwise. "
                "Dashed: the reference.",
                points.density_figure(study, comparison, trends.densities),
            ),
            ("tickets", TICKETS, tickets.tickets_figure(study, comparison)),
            (
                "optima",
                "Left: means over seeds at every density, a line for each size; ringed: the best. "
                f"Right: the best density of each size, line: {interval_text(study, 'interval')}; "
                "dashed: least squares. An optimum at the edge of the grid may lie beyond it.",
                optima.optima_figure(study, comparison, trends.sizes),
            ),
            (
                "interference",
                "Points: seeds; large: mean over seeds.",
                points.interference_figure(study, trends),
            ),
            (
                "plasticity",
                f"On held-out text that is the same at every phase end. Line: mean; band: "
                f"{interval}; thin lines: seeds.",
                lines.plasticity_figure(study, shown),
            ),
            (
                "onset",
                f"{ONSET} Line: mean; band: {interval}; thin lines: seeds.",
                onset_figure(trends.probed, study.plan.analysis.margins.get(MEASURE, 0.0)),
            ),
            (
                "cost",
                "Of one run. Wall time is measured, mean over seeds; the others are planned.",
                points.cost_figure(study, comparison, each),
            ),
        )
        if figure
    ]
    return made


def _frontier_text(trends: Trends) -> str:
    """What its points are and which rate is ringed."""
    of_trials = any(family.trials for family in trends.families)
    start, ringed = (
        ("Small points: trials of the tuning, no run of the test", "taken for the test")
        if of_trials
        else ("Small points: runs", "the best rate by final loss")
    )
    return (
        f"{start}. Large: mean over seeds at each rate, dotted in the order of the rates; ringed: "
        f"{ringed}. Line: mean over seeds of the smallest forgetting at each learned loss, where "
        "every seed has one."
    )


def interval_text(study: Study, kind: str) -> str:
    """What a line or a band is, or that there is none: "95 % t interval over seeds"."""
    seeds = max((len(study.seeds_done(arm.name)) for arm in study.plan.arms), default=0)
    if seeds < MIN_SEEDS:
        return f"none ({MIN_SEEDS} seeds are needed)"
    return f"{100 * (1 - study.plan.analysis.alpha):g} % {kind}"


def in_curves(study: Study) -> list[Arm]:
    """Arms that learn in sequence; if they are too many for one picture, without controls."""
    arms = sequential(study.plan.arms)
    stated = [arm for arm in arms if arm.role == "arm"]
    return arms if len(arms) <= MAX_LINES else stated


def _in_arms(study: Study) -> list[str]:
    """The primary measure; what of the learned is lost; and how good the model is in the end."""
    return list(dict.fromkeys([study.plan.analysis.metrics[0], "NF", "final_loss"]))


def _matrices(study: Study, comparison: Comparison, arms: list[Arm]) -> Figure | None:
    """The reference first, the best of the others beside it, then the rest."""
    primary = study.plan.analysis.metrics[0]
    sign = 1 if MEASURES[primary].better == "lower" else -1

    def place(arm: Arm) -> tuple[int, float]:
        estimate = comparison.figures[arm.name, primary].estimate
        value = sign * estimate.mean if estimate else float("inf")
        return int(not study.plan.is_reference(arm)), value

    found = [(arm, mean_matrix(study, arm.name)) for arm in sorted(arms, key=place)]
    shown = [
        (arm, mean[0]) for arm, mean in found if mean and len(mean[0]) == num_phases(study) + 1
    ]
    return matrices.matrices_figure(shown, domains_of(study), order_of(study))
