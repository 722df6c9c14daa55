"""Tables of a report: the arms, their runs and figures, and what they cost."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparsecl.experiments.findings.collect import RunResult, Study
from sparsecl.experiments.findings.compare import Comparison, sequential, unprobed
from sparsecl.experiments.findings.curves import domains_of, mean_matrix, order_of
from sparsecl.experiments.report.table import Cell, Column, Table, file_name
from sparsecl.experiments.study.measures import MEASURES
from sparsecl.experiments.study.study_plan import Arm
from sparsecl.metrics.bootstrap import MIN_SEEDS, Interval
from sparsecl.metrics.header import COUNTS

DIGITS = {"seconds": 1, "tokens_per_second": 0}
"""Digits after the point of measures that are no nats or shares."""

ARM = Column(key="arm", heading="arm")
SEEDS = Column(key="seeds", heading="seeds")
PLANNED = Column(key="planned_seeds", heading="of")


def arms_table(study: Study) -> Table:
    """What each arm is, before anything was measured."""
    columns = (
        ARM,
        Column(key="label", heading="label"),
        Column(key="role", heading="role"),
        Column(key="of", heading="control of"),
        Column(key="kind", heading="topology"),
        Column(key="density", heading="density"),
        Column(key="live_parameters", heading="live parameters"),
        Column(
            key="tokens_per_live_parameter",
            heading="tokens per live parameter",
            digits=3,
            significant=True,
        ),
        Column(key="done", heading="runs done"),
        Column(key="planned", heading="of"),
    )
    rows = tuple(
        (
            arm.name,
            arm.label,
            arm.role,
            arm.of,
            arm.kind,
            arm.density,
            arm.live,
            arm.tokens / arm.live if arm.live else None,
            sum(result.status == "done" for result in study.of(arm.name)),
            len(study.of(arm.name)),
        )
        for arm in study.plan.arms
    )
    caption = "The arms. Density: live share of the masked matrices, for the first seed."
    return Table(name="arms", caption=caption, columns=columns, rows=rows)


def status_table(study: Study) -> Table:
    """Every run of the plan."""
    columns = (ARM, *(Column(key=f"seed{s}", heading=f"seed {s}") for s in study.plan.seeds))
    rows = []
    for arm in study.plan.arms:
        status = study.statuses(arm.name)
        rows.append((arm.name, *(status.get(seed) for seed in study.plan.seeds)))
    caption = "Runs by arm and seed. Only those that are done stand in any figure of this report."
    return Table(name="runs", caption=caption, columns=columns, rows=tuple(rows))


def failures_table(study: Study) -> Table:
    """Runs that failed, and why."""
    columns = (Column(key="run", heading="run"), Column(key="reason", heading="reason"))
    rows = tuple(study.failures.items())
    return Table(name="failures", caption="Runs that failed.", columns=columns, rows=rows)


def measure_table(study: Study, comparison: Comparison, measure: str) -> Table:
    """One measure of every arm with all its intervals."""
    digits = DIGITS.get(measure, 4)
    found = MEASURES[measure]
    means = (Column(key=key, heading=key, digits=digits) for key in ("mean", "sd"))
    columns = (ARM, SEEDS, PLANNED, *means, *interval_columns(digits))
    if measure == "NF":
        columns += (Column(key="domains", heading="domains that count"),)
    rows = []
    for arm in unprobed(study.plan.arms):
        figure = comparison.figures[arm.name, measure]
        one = figure.estimate
        values: tuple[Cell, ...] = (None,) * 8
        if one is not None:
            values = (one.mean, one.sd, *ends(one.t), *ends(one.percentile), *ends(one.bca))
        values += (figure.domains,) if measure == "NF" else ()
        rows.append((arm.name, len(figure.seeds), figure.planned, *values))
    caption = (
        f"{measure}, {found.unit}: {found.text}; {found.better} is better. {level_text(study)}"
    )
    return Table(name=f"measure-{measure}", caption=caption, columns=columns, rows=tuple(rows))


def interval_columns(digits: int = 4, *, narrow: bool = False) -> tuple[Column, ...]:
    """Low and high of the three intervals; `narrow` shows the one in front alone."""
    kinds = (("", "t interval"), ("boot_", "bootstrap interval"), ("bca_", "BCa interval"))
    columns = []
    for prefix, heading in kinds:
        hide = narrow and bool(prefix)
        low = Column(key=f"{prefix}low", heading=heading, digits=digits, pair=True, csv_only=hide)
        columns += [low, Column(key=f"{prefix}high", heading="", digits=digits, csv_only=hide)]
    return tuple(columns)


def texts_table(study: Study) -> Table:
    """How much text is behind the scores of each domain, and how often its training text was read.
    Runs of a study are scored on equal text; passes are those of the run that read most."""
    columns = (
        Column(key="domain", heading="domain"),
        *(
            Column(key=f"{text}_{key}", heading=f"{key}{heading}", digits=0)
            for text, heading in (("ends", ""), ("all", ", of"), ("inside", ", inside phases"))
            for key in COUNTS
        ),
        Column(key="train_tokens", heading="training tokens", digits=0),
        Column(key="planned_passes", heading="passes planned", digits=2),
        Column(key="passes", heading="passes read", digits=2),
    )
    summaries = [r.summary for r in study.results if r.summary is not None]
    scored = next((s["scored"] for s in summaries if _stated(s["scored"])), {})
    read = [s["reading"] for s in summaries if s.get("reading")]

    def most(key: str, name: str) -> float | None:
        return max((found[key].get(name, 0.0) for found in read), default=None)

    rows = tuple(
        (
            name,
            *(of[key] for of in (found, found["all"], found["inside"]) for key in COUNTS),
            read[0]["train_tokens"].get(name) if read else None,
            most("planned_passes", name),
            most("passes", name),
        )
        for name, found in scored.items()
    )
    caption = (
        "Validation text behind the scores: matrices and all that is made of them; of all there "
        "is; and curves inside phases, learning_area and stopped_early, which stand on less. "
        "Passes: tokens read, replayed ones too, over training tokens, in the run with most."
    )
    return Table(name="texts", caption=caption, columns=columns, rows=rows)


def _stated(scored: Mapping[str, Any]) -> bool:
    """Not so in runs of earlier versions."""
    return bool(scored) and all("documents" in found for found in scored.values())


def means_table(study: Study, comparison: Comparison) -> Table:
    """Means of all measures, one line an arm."""
    columns = [ARM, Column(key="seeds", heading="runs done")]
    columns += [
        Column(key=name, heading=name, digits=DIGITS.get(name, 3))
        for name in study.measures
        if name != "BWT"  # F_last with the other sign
    ]
    rows = []
    for arm in unprobed(study.plan.arms):
        row: list[Cell] = [arm.name, len(study.seeds_done(arm.name))]
        for column in columns[2:]:
            figure = comparison.figures[arm.name, column.key]
            row.append(figure.estimate.mean if figure.estimate else None)
        rows.append(tuple(row))
    caption = "Means over the seeds that are done; units and directions are in the definitions."
    return Table(name="means", caption=caption, columns=tuple(columns), rows=tuple(rows))


def seeds_table(study: Study) -> Table:
    """Every measure of every run: what all other figures of the arms can be computed from."""
    names = domains_of(study)
    columns = (
        ARM,
        Column(key="order", heading="order"),
        Column(key="seed", heading="seed"),
        Column(key="status", heading="status"),
        *measure_columns(study.measures),
        # A contrast in NF averages anew, over the domains that count on both sides of it.
        *(Column(key=f"NF_{name}", heading=f"NF, {name}", csv_only=True) for name in names),
    )
    rows = tuple(
        (
            *(result.run.arm, result.run.order or None, result.run.seed, result.status),
            *measure_cells(study.measures, result),
            *((result.shares or {}).get(name) for name in names),
        )
        for result in study.results
    )
    caption = "Every run, one line each; figures of those that are done."
    return Table(name="seeds", caption=caption, columns=columns, rows=rows)


def measure_columns(names: Iterable[str]) -> tuple[Column, ...]:
    """One for each measure."""
    return tuple(Column(key=name, heading=name, digits=DIGITS.get(name, 4)) for name in names)


def measure_cells(names: Iterable[str], result: RunResult | None) -> tuple[Cell, ...]:
    """The measures of a run, without values if it is not done."""
    values = {} if result is None else result.values or {}
    return tuple(values.get(name) for name in names)


def cost_table(study: Study, comparison: Comparison) -> Table:
    """Planned and measured cost of one run of each arm."""
    still = not any(arm.gradient_flops or arm.score_flops for arm in study.plan.arms)
    columns = (
        ARM,
        SEEDS,
        Column(key="seconds", heading="wall time, s", digits=1),
        Column(key="tokens_per_second", heading="tokens/s", digits=0),
        Column(key="tokens", heading="tokens"),
        Column(key="replayed_tokens", heading="replayed tokens", digits=0),
        Column(key="steps", heading="steps"),
        Column(key="flops_per_token", heading="FLOPs per token"),
        Column(key="flops", heading="FLOPs of a run"),
        Column(key="gradient_flops", heading="of it gradients of absent weights", csv_only=still),
        Column(key="score_flops", heading="of it scores of the graph", csv_only=still),
        Column(key="live_parameters", heading="live parameters"),
        Column(key="parameters", heading="all parameters"),
    )
    rows = tuple(_cost_row(study, comparison, arm) for arm in study.plan.arms)
    caption = (
        "Cost of one run. Wall time, speed and replayed tokens are measured, means over seeds; the "
        "rest is planned, an upper bound where a phase may end early. FLOPs count live weights, at "
        "each step those that live then, and what methods compute to move the graph; not replayed "
        "tokens."
    )
    return Table(name="cost", caption=caption, columns=columns, rows=rows)


def _cost_row(study: Study, comparison: Comparison, arm: Arm) -> tuple[Cell, ...]:
    seconds, speed = (
        comparison.figures[arm.name, measure].estimate
        for measure in ("seconds", "tokens_per_second")
    )
    replayed = [(r.summary or {}).get("replayed_tokens") for r in study.done(arm.name)]
    return (
        arm.name,
        len(study.seeds_done(arm.name)),
        seconds.mean if seconds else None,
        speed.mean if speed else None,
        arm.tokens,
        mean_of(replayed),
        arm.steps,
        arm.flops_per_token,
        arm.flops,
        arm.gradient_flops,
        arm.score_flops,
        arm.live,
        arm.total,
    )


def matrix_tables(study: Study) -> list[Table]:
    """The mean loss matrix of each arm that has one."""
    tables = []
    for arm in sequential(study.plan.arms):
        found = mean_matrix(study, arm.name)
        if found is None:
            continue
        loss, seeds = found
        names = domains_of(study)
        columns = (
            Column(key="after", heading="after phase"),
            *(Column(key=name, heading=name) for name in names),
        )
        rows = tuple(
            (_row_name(study, row, len(loss)), *map(float, values))
            for row, values in enumerate(loss)
        )
        caption = f"{arm.name}: mean loss over {len(seeds)} seeds, nats per token."
        tables.append(
            Table(name=file_name(f"matrix-{arm.name}"), caption=caption, columns=columns, rows=rows)
        )
    return tables


def _row_name(study: Study, row: int, num_rows: int) -> str:
    if row == 0:
        return "before training"
    order = order_of(study)
    known = num_rows == len(order) + 1
    return f"{row - 1} {domains_of(study)[order[row - 1]]}" if known else str(row - 1)


def definitions_table(study: Study) -> Table:
    """Every measure in words."""
    columns = (
        Column(key="measure", heading="measure"),
        Column(key="unit", heading="unit"),
        Column(key="better", heading="better"),
        Column(key="meaning", heading="meaning"),
    )
    rows = tuple((name, m.unit, m.better, m.text) for name, m in study.measures.items())
    return Table(name="definitions", caption="The measures.", columns=columns, rows=rows)


def ends(interval: Interval | None) -> tuple[Cell, Cell]:
    return (None, None) if interval is None else (interval.low, interval.high)


def level_text(study: Study) -> str:
    """What the intervals of a table are, as far as the study has any."""
    seeds = max((len(study.seeds_done(arm.name)) for arm in study.plan.arms), default=0)
    if seeds < MIN_SEEDS:
        return f"There is no interval: {MIN_SEEDS} seeds are needed."
    return f"Intervals: {100 * (1 - study.plan.analysis.alpha):g} %, over seeds."


def mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
