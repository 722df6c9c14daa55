"""How the arms were tuned: the values that were taken, and the whole curve of each arm."""

from collections.abc import Mapping

from markupsafe import Markup

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.report.page import join, paragraph
from sparsecl.experiments.report.table import Cell, Column, Table
from sparsecl.experiments.report.tables import measure_cells, measure_columns
from sparsecl.experiments.study.measures import MEASURES, TEXT_MEASURES
from sparsecl.experiments.study.trials import trial_name
from sparsecl.experiments.study.tune import TunedArm, Tuning


def words(tuning: Tuning) -> Markup:
    """What was done, as HTML."""
    asked, found = tuning.config, MEASURES[tuning.config.by]
    lines = [
        f"{_budget(tuning)}, each on the seeds {_list(asked.on.seeds)} in the order "
        f"{_list(asked.on.domains)}: neither is used by the test. In all {tuning.runs:,} runs, "
        f"{tuning.tokens:,} tokens and {tuning.flops:.3g} FLOPs, beside those of the test.",
        f"Taken is the best mean of {asked.by} ({found.unit}, {found.better} is better). Values "
        "are as good as the best where their mean difference from it, seed by seed, is at most its "
        "standard error; of these the smaller change from the arm's own value is taken, then the "
        "smaller value. Controls have the values of the arm that they are made of: "
        "equal_parameters and stopped_early those of the reference.",
        *(f"{note[0].upper()}{note[1:]}." for note in tuning.notes),
    ]
    return join(map(paragraph, lines))


def taken_table(tuning: Tuning) -> Table:
    """What each arm got."""
    columns = [Column(key="arm", heading="arm")]
    for key in tuning.keys:
        columns += [
            Column(key=f"{key}_base", heading=f"{key} by itself", digits=4, significant=True),
            Column(key=f"{key}_taken", heading="taken", digits=4, significant=True),
            Column(key=f"{key}_best", heading="best mean", digits=4, significant=True),
            Column(key=f"{key}_edge", heading="at an end of the grid"),
        ]
    columns += [
        Column(key="mean", heading=f"{tuning.config.by} of the best"),
        Column(key="ties", heading="as good"),
    ]
    rows: list[tuple[Cell, ...]] = []
    for one in tuning.arms:
        row: list[Cell] = [one.arm]
        for key in tuning.keys:
            row += [of.get(key) for of in (one.base, one.taken, one.best, one.edges)]
        row += [_best_mean(one), "; ".join(map(_point, one.ties)) or None]
        rows.append(tuple(row))
    widened = ", though it was widened once" if tuning.added else ""
    caption = "Values frozen for the test."
    if any(one.edges for one in tuning.arms):
        caption += f" At an end of the grid{widened}: what is best may lie beyond it."
    return Table(name="tuned", caption=caption, columns=tuple(columns), rows=tuple(rows))


def curves_table(tuning: Tuning) -> Table:
    """Every trial: what the figure is drawn from."""
    columns = (
        Column(key="arm", heading="arm"),
        *(Column(key=key, heading=key, digits=4, significant=True) for key in tuning.keys),
        Column(key="mean", heading=f"mean {tuning.config.by}"),
        Column(key="error", heading="standard error of the difference from the best"),
        *(Column(key=f"seed{s}", heading=f"seed {s}") for s in tuning.config.on.seeds),
        Column(key="taken", heading="taken"),
    )
    rows = tuple(
        (
            one.arm,
            *(trial.values.get(key) for key in tuning.keys),
            trial.mean,
            trial.error,
            *trial.scores,
            "taken" if trial.values == one.taken else None,
        )
        for one in tuning.arms
        for trial in one.trials
    )
    caption = (
        f"All trials: {tuning.config.by}, {MEASURES[tuning.config.by].unit}, on each tuning seed. "
        "No value: the run diverged, or the measure is not defined for it."
    )
    return Table(name="tuning", caption=caption, columns=columns, rows=rows)


def trials_table(tuning: Tuning, trials: Study | None) -> Table | None:
    """Every measure of every run of the tuning; None if its folders are gone."""
    if trials is None:
        return None
    columns = (
        Column(key="arm", heading="arm"),
        *(Column(key=key, heading=key, digits=4, significant=True) for key in tuning.keys),
        Column(key="seed", heading="seed"),
        Column(key="status", heading="status"),
        *measure_columns(TEXT_MEASURES),
    )
    found = {(result.run.arm, result.run.seed): result for result in trials.results}
    rows: list[tuple[Cell, ...]] = []
    for one in tuning.arms:
        for trial in one.trials:
            for seed in tuning.config.on.seeds:
                result = found.get((trial_name(one.arm, trial.values), seed))
                status = "missing" if result is None else result.status
                values = (trial.values.get(key) for key in tuning.keys)
                rows.append((one.arm, *values, seed, status, *measure_cells(TEXT_MEASURES, result)))
    caption = "Every run of the tuning, one line each; figures of those that are done."
    return Table(name="trials", caption=caption, columns=columns, rows=tuple(rows))


def _budget(tuning: Tuning) -> str:
    """How many trials there were: more for an arm whose method has a key in the grid."""
    counts = sorted({len(one.trials) for one in tuning.arms})
    if len(counts) == 1:
        return f"Each arm got {counts[0]} trials"
    return (
        f"Each arm got {counts[0]} to {counts[-1]} trials: all the same values of what all have, "
        "and those with a method the same values of its key too"
    )


def _best_mean(one: TunedArm) -> float | None:
    return next((trial.mean for trial in one.trials if trial.values == one.best), None)


def _point(values: Mapping[str, float]) -> str:
    return ", ".join(f"{value:g}" for value in values.values())


def _list(items: tuple[object, ...]) -> str:
    return ", ".join(map(str, items))
