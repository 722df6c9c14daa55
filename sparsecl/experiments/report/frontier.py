"""Learning against forgetting over learning rates: the tables of a report."""

from markupsafe import Markup

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.frontier import (
    HEADINGS,
    KEY,
    FamilyContrast,
    place,
    tuned_over_rate,
)
from sparsecl.experiments.findings.trends import Trends
from sparsecl.experiments.report.page import paragraph
from sparsecl.experiments.report.table import Cell, Column, Table
from sparsecl.experiments.report.tables import SEEDS, ends, level_text


def words(study: Study, trends: Trends) -> Markup:
    """Where the points come from, or why there are none, as HTML."""
    tuning = study.plan.tuning
    if tuning is None or not tuned_over_rate(study):
        if trends.families:
            return Markup()
        return paragraph(
            f"No two arms differ in {KEY} alone, so what is said of arms at one rate each may be "
            "an effect of the rate."
        )
    done = 0 if trends.trials is None else trends.trials.counts()["done"]
    if trends.trials is None or not trends.families:
        return paragraph(
            f"The study was tuned over {KEY}, and its trials make a frontier for each arm; but "
            f"{done} of their {tuning.runs} runs are in the study folder, so there is none here."
        )
    failed = trends.trials.counts()["failed"]
    seeds, order = (
        ", ".join(map(str, of)) for of in (tuning.config.on.seeds, tuning.config.on.domains)
    )
    text = (
        f"The points are trials of the tuning: each arm at every rate that was tried, on the seeds "
        f"{seeds} in the order {order}. No run of the test is among them. {done} of "
        f"{tuning.runs} trial runs are done"
    )
    text += f", {failed} failed. " if failed else ". "
    others = [key for key in tuning.keys if key != KEY]
    if others:
        text += f"Shown are those with the values taken of {', '.join(others)}. "
    return paragraph(
        f"{text}Arms at the rates taken are compared by the planned tests, on seeds that had no "
        "part in the choice."
    )


def families_table(trends: Trends) -> Table:
    """What each family is and how far its frontier reaches."""
    columns = (
        Column(key="family", heading="family"),
        Column(key="rates", heading="learning rates"),
        Column(key="frontiers", heading="seeds with a frontier"),
        Column(key="low", heading="learned losses of all of them", pair=True),
        Column(key="high", heading="high"),
        Column(key="best", heading="best rate", digits=3, significant=True),
        Column(key="taken", heading="rate taken", digits=3, significant=True),
        Column(key="edge", heading="at the edge"),
    )
    rows = []
    for family in trends.families:
        curve = family.mean_curve()
        reach = (None, None) if curve is None else (float(curve[0][0]), float(curve[0][-1]))
        rates = ", ".join(f"{rate:g}" for rate in family.rates)
        edge = None if family.chosen is None else "yes" if family.at_edge else "no"
        head = (family.name, rates, len(family.frontiers), *reach)
        rows.append((*head, family.best, family.taken, edge))
    chosen = (
        "Trials of one arm that differ in optimizer.lr alone. Rate taken: frozen for the test"
        if any(family.trials for family in trends.families)
        else "Arms that differ in optimizer.lr alone. Best rate: lowest mean final loss among the "
        "rates that lost fewest runs"
    )
    caption = f"{chosen}; at the edge of the rates a better one may lie beyond."
    return Table(name="families", caption=caption, columns=columns, rows=tuple(rows))


def frontier_table(study: Study, trends: Trends) -> Table:
    """Every comparison of families."""
    columns = (
        Column(key="compared", heading="compared"),
        Column(key="metric", heading="metric"),
        Column(key="family", heading="family"),
        Column(key="against", heading="minus"),
        Column(key="where", heading="where"),
        SEEDS,
        Column(key="difference", heading="difference"),
        Column(key="low", heading="t interval", pair=True),
        Column(key="high", heading="high"),
        Column(key="p", heading="p", csv_only=True),
        Column(key="p_corrected", heading="corrected p"),
        Column(key="family_size", heading="over", csv_only=True),
        Column(key="paired", heading="paired"),
    )
    rows = tuple(_row(one) for one in trends.family_contrasts)
    trials = next((family.trials for family in trends.families), None)
    source = (
        "Best rates were chosen on the seeds that are compared."
        if trials is None
        else f"Trials of the tuning, seeds {', '.join(map(str, trials.plan.seeds))}."
    )
    caption = (
        "At equal learned loss: mean over the learned losses that every seed of both families "
        "reaches, without extrapolation. At equal movement: the same over log KL. "
        f"{source} Not planned; corrected with Holm's method within each kind and metric. "
        f"{level_text(study if trials is None else trials)}"
    )
    return Table(name="frontier", caption=caption, columns=columns, rows=rows)


def _row(one: FamilyContrast) -> tuple[Cell, ...]:
    test = one.test
    head = (HEADINGS[one.at], one.measure, one.family, one.against, place(one))
    if test is None:
        return (*head, *(None,) * 8)
    return (
        *head,
        test.num_seeds,
        test.mean,
        *ends(test.t),
        test.p,
        one.adjusted,
        one.family_size,
        "yes" if test.paired else "no",
    )
