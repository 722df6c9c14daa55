"""Learning against forgetting over learning rates: the tables of a report."""

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.frontier import HEADINGS, FamilyContrast, place
from sparsecl.experiments.findings.trends import Trends
from sparsecl.experiments.report.table import Cell, Column, Table
from sparsecl.experiments.report.tables import SEEDS, ends, level_text


def families_table(trends: Trends) -> Table:
    """What each family is and how far its frontier reaches."""
    columns = (
        Column(key="family", heading="family"),
        Column(key="rates", heading="learning rates"),
        Column(key="frontiers", heading="seeds with a frontier"),
        Column(key="low", heading="learned losses of all of them", pair=True),
        Column(key="high", heading="high"),
        Column(key="best", heading="best rate", digits=3, significant=True),
        Column(key="edge", heading="at the edge"),
    )
    rows = []
    for family in trends.families:
        curve = family.mean_curve()
        reach = (None, None) if curve is None else (float(curve[0][0]), float(curve[0][-1]))
        rates = ", ".join(f"{rate:g}" for rate in family.rates)
        edge = None if family.best is None else "yes" if family.at_edge else "no"
        rows.append((family.name, rates, len(family.frontiers), *reach, family.best, edge))
    caption = (
        "Arms that differ in optimizer.lr alone. Best rate: lowest mean final loss among the rates "
        "that lost fewest runs; at the edge of the rates a better one may lie beyond."
    )
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
    caption = (
        "At equal learned loss: mean over the learned losses that every seed of both families "
        "reaches, without extrapolation. Best rates were chosen on the seeds that are compared. "
        f"Not planned; corrected with Holm's method within each kind and metric. "
        f"{level_text(study)}"
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
