"""Tables of a report: tests, controls, and what the trends show."""

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import Comparison, Contrast, Family
from sparsecl.experiments.findings.curves import plasticity_names
from sparsecl.experiments.findings.optima import SizeTrend
from sparsecl.experiments.findings.trends import INTERFERENCE_FIGURES, Trends
from sparsecl.experiments.report.table import Cell, Column, Table
from sparsecl.experiments.report.tables import (
    ARM,
    PLANNED,
    SEEDS,
    ends,
    interval_columns,
    level_text,
    mean_of,
)
from sparsecl.metrics.crossover import STRETCH

NOT_SHOWN = "difference not shown"
"""The verdict on a test that rejects nothing, and whose interval is wider than the margin."""


def contrasts_table(study: Study, comparison: Comparison, family: Family) -> Table:
    """The tests of one family."""
    columns = (
        Column(key="metric", heading="metric"),
        ARM,
        Column(key="against", heading="minus"),
        SEEDS,
        PLANNED,
        Column(key="difference", heading="difference"),
        *interval_columns(narrow=True),
        Column(key="p", heading="p"),
        Column(key="p_corrected", heading="corrected p"),
        Column(key="family_size", heading="over", csv_only=True),
        Column(key="d_z", heading="d_z", digits=2),
        Column(key="paired", heading="paired"),
        Column(key="domains", heading="domains behind NF", csv_only=True),
        Column(key="margin", heading="margin", digits=3, csv_only=True),
        Column(key="tost_p", heading="TOST p"),
        Column(key="p_failed_as_worst", heading="p, failed as worst", csv_only=True),
        Column(key="verdict", heading="verdict"),
    )
    rows = tuple(_contrast_row(contrast) for contrast in comparison.family(family))
    method = "Benjamini-Hochberg" if family == "exploratory" else "Holm"
    note = "" if family == "primary" else f" {family.capitalize()}: not what the plan rests on."
    caption = (
        f"Differences over pairs of seeds (unpaired where it says so), corrected with {method}'s "
        "method for each metric. "
        f"{level_text(study)}{note}"
    )
    return Table(name=f"tests-{family}", caption=caption, columns=columns, rows=rows)


def _contrast_row(contrast: Contrast) -> tuple[Cell, ...]:
    test = contrast.test
    tost = test.equivalence
    return (
        contrast.measure,
        contrast.arm,
        contrast.against,
        test.num_seeds,
        contrast.planned,
        test.mean,
        *ends(test.t),
        *ends(test.percentile),
        *ends(test.bca),
        test.p,
        contrast.adjusted,
        contrast.family_size,
        test.d_z,
        "yes" if test.paired else "no",
        contrast.domains,
        tost.margin if tost else None,
        tost.p if tost else None,
        contrast.failed_as_worst,
        verdict(contrast),
    )


def verdict(contrast: Contrast) -> str:
    """What a contrast shows of its first arm. "Not shown" is never "no difference"."""
    test = contrast.test
    if test.mean is None:
        return "no pair of runs has this measure"
    equivalent = test.equivalence is not None and test.equivalence.inside
    same = f"equivalent within {test.equivalence.margin:g}" if test.equivalence else ""
    if contrast.significant:
        direction = "better" if contrast.improves else "worse"
        return f"{direction}, yet {same}" if equivalent else direction
    if equivalent:
        return same
    return NOT_SHOWN if test.p is not None else "no test: too few seeds"


def stops_table(trends: Trends) -> Table:
    """Controls that were stopped early: at which loss."""
    columns = (
        ARM,
        Column(key="of", heading="stopped at the losses of"),
        Column(key="phase", heading="phase"),
        Column(key="domain", heading="domain"),
        SEEDS,
        PLANNED,
        Column(key="target", heading="its loss"),
        Column(key="reached", heading="loss of the control"),
        Column(key="missed", heading="seeds not there"),
    )
    rows = tuple(
        (
            *(s.arm, s.of, s.phase, s.domain),
            *(len(s.seeds), s.planned, s.target, s.reached, s.missed),
        )
        for s in trends.stops
    )
    caption = (
        "Loss of each phase's domain right after it, nats per token, on the text that is scored "
        "inside phases (the matrices stand on more). A phase of the control ends at the first "
        "evaluation at or below the arm's loss; where it never gets there it runs to its end, and "
        "the seed is counted in the last column."
    )
    return Table(name="stops", caption=caption, columns=columns, rows=rows)


def alone_table(trends: Trends) -> Table:
    """Domains learned alone and in sequence."""
    columns = (
        ARM,
        Column(key="domain", heading="domain"),
        SEEDS,
        PLANNED,
        Column(key="in_sequence", heading="in sequence"),
        Column(key="alone", heading="alone"),
        Column(key="difference", heading="difference"),
    )
    rows = tuple(
        (
            gap.arm,
            gap.domain,
            len(gap.seeds),
            gap.planned,
            gap.in_sequence,
            gap.by_itself,
            gap.in_sequence - gap.by_itself,
        )
        for gap in trends.alone
    )
    caption = (
        "Loss right after a domain's own training, nats per token, when it is learned in sequence "
        "and when the same data are learned alone from the initial weights. A positive difference "
        "is what the earlier domains cost."
    )
    return Table(name="alone", caption=caption, columns=columns, rows=rows)


def crossover_table(study: Study, trends: Trends) -> Table:
    """Crossovers with the reference."""
    columns = (
        ARM,
        Column(key="curve", heading="curve"),
        SEEDS,
        PLANNED,
        Column(key="rounds", heading="rounds"),
        Column(key="round", heading="crossover", csv_only=True),
        Column(key="low", heading="interval", pair=True, csv_only=True),
        Column(key="high", heading="high"),
        Column(key="p", heading="p", csv_only=True),
        Column(key="text", heading="crossover [interval]"),
    )
    rows = []
    for item in trends.crossovers:
        found, curve = item.result, item.curve or "all domains"
        values: tuple[Cell, ...] = (None, None, None, None, None, item.why)
        if found is not None:
            low, high = found.interval or (None, None)
            values = (found.num_rounds, found.round, low, high, found.p, found.text())
        rows.append((item.arm, curve, len(item.seeds), item.planned, *values))
    caption = (
        f"A crossover needs a stretch of {STRETCH} phases or more in which the arm is reliably "
        f"worse than {study.plan.analysis.reference}, and after it one in which it is reliably "
        "better: sign flips over seeds, corrected over the phases searched, not over arms."
    )
    return Table(name="crossover", caption=caption, columns=columns, rows=tuple(rows))


def orders_table(study: Study, trends: Trends) -> Table:
    """The planned contrasts in each order of the domains, and over all."""
    columns = (
        ARM,
        Column(key="against", heading="minus"),
        Column(key="metric", heading="metric"),
        Column(key="order", heading="order"),
        SEEDS,
        Column(key="difference", heading="difference"),
        Column(key="low", heading="interval", pair=True),
        Column(key="high", heading="high"),
        Column(key="method", heading="method"),
    )
    rows = tuple(
        (
            one.arm,
            one.against,
            one.measure,
            one.order or "all",
            len(one.differences),
            one.mean,
            *ends(one.interval),
            None if one.interval is None else one.interval.method,
        )
        for one in trends.orders
    )
    caption = (
        "Planned contrasts within each order of the domains (Student's t over seeds), and over all "
        f"with seeds and orders resampled (hierarchical bootstrap). {level_text(study)}"
    )
    return Table(name="orders", caption=caption, columns=columns, rows=rows)


def pareto_table(trends: Trends) -> Table:
    """Membership of every front."""
    columns = (
        Column(key="first", heading="measure"),
        Column(key="second", heading="against"),
        ARM,
        SEEDS,
        Column(key="first_mean", heading="mean of the first"),
        Column(key="second_mean", heading="mean of the second"),
        Column(key="on_front", heading="on the front"),
        Column(key="share", heading="share of resamples", digits=3),
    )
    rows = tuple(
        (
            *front.measures,
            point.name,
            len(front.seeds),
            *point.values,
            "yes" if point.on_front else "no",
            point.share,
        )
        for front in trends.fronts
        for point in front.points
    )
    caption = (
        "Arms that no other beats in both measures at once, and how often they are on the front "
        "when seeds are resampled. An arm with a failed run is on none."
    )
    return Table(name="pareto", caption=caption, columns=columns, rows=rows)


def density_table(study: Study, trends: Trends) -> Table:
    """Fits of forgetting against density."""
    columns = (
        Column(key="kind", heading="topology"),
        Column(key="densities", heading="densities"),
        SEEDS,
        Column(key="points", heading="points"),
        Column(key="missing", heading="without value"),
        Column(key="slope", heading="slope per factor 10"),
        Column(key="slope_low", heading="interval", pair=True),
        Column(key="slope_high", heading="high"),
        Column(key="at_density_1", heading="line at density 1"),
        Column(key="r_squared", heading="R^2", digits=3),
        Column(key="spearman", heading="Spearman", digits=3),
        Column(key="spearman_low", heading="interval", digits=3, pair=True),
        Column(key="spearman_high", heading="high", digits=3),
    )
    rows = []
    for trend in trends.densities:
        found = trend.relation
        if found is None:
            densities = ", ".join(f"{study.plan.arm(name).density:.3g}" for name in trend.arms)
            rows.append((trend.kind, f"{densities}: {trend.why}", *(None,) * 11))
            continue
        rows.append(
            (
                trend.kind,
                ", ".join(f"{density:.3g}" for density in found.densities),
                found.num_seeds,
                found.num_points,
                found.num_missing,
                found.slope,
                *ends(found.slope_interval),
                found.intercept,
                found.r_squared,
                found.spearman,
                *ends(found.spearman_interval),
            )
        )
    caption = (
        "F_last = a + b log10(density), least squares over all seeds, over arms that differ in "
        f"density alone; intervals leave out whole seeds. {level_text(study)}"
    )
    return Table(name="density", caption=caption, columns=columns, rows=tuple(rows))


def optima_table(study: Study, trends: Trends) -> Table:
    """The best density of every size."""
    columns = (
        Column(key="metric", heading="metric"),
        Column(key="kind", heading="topology"),
        Column(key="size", heading="size"),
        Column(key="parameters", heading="parameters"),
        SEEDS,
        Column(key="density", heading="best density", digits=3),
        Column(key="low", heading="interval", digits=3, pair=True),
        Column(key="high", heading="high", digits=3),
        Column(key="value", heading="value there"),
        Column(key="edge", heading="at the edge"),
        Column(key="shares", heading="won in resamples (density: share)"),
    )
    rows: list[tuple[Cell, ...]] = []
    for trend in trends.sizes:
        for item in trend.optima:
            best, head = item.optimum, (trend.measure, trend.kind, item.size, item.parameters)
            if best is None:
                rows.append((*head, None, None, None, None, None, None, item.why))
                continue
            won = zip(best.densities, best.shares or (), strict=False)
            shares = ", ".join(f"{density:.3g}: {share:.2f}" for density, share in won if share)
            edge = "yes" if best.at_edge else "no"
            ends_of = ends(best.interval)
            rows.append(
                (*head, best.num_seeds, best.density, *ends_of, best.value, edge, shares or None)
            )
    caption = (
        "The density with the best mean over seeds, among those that were run; dense counts as 1. "
        "The interval spans the densities that the seeds cannot tell from it. "
        f"Seeds without a value at some density are left out. {level_text(study)} "
    ) + " ".join(_slope_text(trend) for trend in trends.sizes)
    return Table(name="optima", caption=caption.strip(), columns=columns, rows=tuple(rows))


def _slope_text(trend: SizeTrend) -> str:
    """How the optimum of one measure moves with size, in a sentence."""
    found = trend.slope
    if found is None:
        return f"{trend.measure}: no slope ({trend.why})."
    text = f"{trend.measure}: log10 of the best density changes by {found.slope:.3f}"
    if found.interval is not None:
        text += f" [{found.interval.low:.3f}, {found.interval.high:.3f}]"
    return f"{text} for ten times the parameters ({found.num_seeds} seeds)."


def interference_table(trends: Trends) -> Table:
    """Means of interference.json over seeds, one line an arm."""
    found = {(item.arm, item.name): item for item in trends.interference}
    columns = (
        ARM,
        SEEDS,
        *(Column(key=name, heading=name, significant=True) for name in INTERFERENCE_FIGURES),
    )
    rows = []
    for arm in dict.fromkeys(item.arm for item in trends.interference):
        items = [found.get((arm, name)) for name in INTERFERENCE_FIGURES]
        seeds = max(len(item.seeds) for item in items if item is not None)
        # A figure that some of the seeds lack has no mean that belongs to this line.
        means = (
            mean_of(item.values) if item is not None and len(item.seeds) == seeds else None
            for item in items
        )
        rows.append((arm, seeds, *means))
    caption = (
        "Interference between domains, measured on the last checkpoint of each run; means over "
        "seeds. "
        + "; ".join(
            f"{name}: {text}" + (f" ({unit})" if unit else "")
            for name, (unit, text, _) in INTERFERENCE_FIGURES.items()
        )
    )
    return Table(name="interference", caption=f"{caption}.", columns=columns, rows=tuple(rows))


def plasticity_table(study: Study) -> Table:
    """The plasticity panel before training and after the last phase, means over seeds."""
    columns = (
        ARM,
        Column(key="figure", heading="figure"),
        SEEDS,
        Column(key="first", heading="before training", digits=5),
        Column(key="last", heading="after the last phase", digits=5),
    )
    rows = []
    for arm in study.plan.arms:
        panels = [(r.summary or {}).get("plasticity") or [] for r in study.done(arm.name)]
        borders = [(panel[0], panel[-1]) for panel in panels if panel]
        for name in plasticity_names(study):
            known = [(a.get(name), b.get(name)) for a, b in borders if b.get(name) is not None]
            if known:
                first, last = ([pair[k] for pair in known] for k in (0, 1))
                rows.append((arm.name, name, len(known), mean_of(first), mean_of(last)))
    caption = (
        "Plasticity panel on held-out text: means over blocks (final_: the last hidden state), "
        "then over seeds."
    )
    return Table(name="plasticity", caption=caption, columns=columns, rows=tuple(rows))
