"""Tables of the probes: the loss on a new domain after k phases, and the onset of each arm."""

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.onset import MEASURE, ProbedArm
from sparsecl.experiments.report.table import Cell, Column, Table
from sparsecl.experiments.report.tables import ARM, PLANNED, SEEDS, level_text
from sparsecl.metrics.onset import Onset


def onset_table(study: Study, probed: tuple[ProbedArm, ...]) -> Table:
    """One line for each arm: where its onset is, against density and size."""
    columns = (
        ARM,
        Column(key="size", heading="size", csv_only=not study.plan.sizes()),
        Column(key="density", heading="density"),
        Column(key="live_parameters", heading="live parameters"),
        Column(key="domain", heading="probe"),
        SEEDS,
        PLANNED,
        Column(key="fresh_loss", heading="fresh model"),
        Column(key="best_loss", heading="best probe"),
        Column(key="last_loss", heading="last probe"),
        Column(key="above_fresh", heading="above fresh after", csv_only=True),
        Column(key="above_best", heading="above best after", csv_only=True),
        Column(key="fresh", heading="onset against a fresh model"),
        Column(key="best", heading="onset against its best"),
    )
    rows = tuple(_onset_row(one) for one in probed)
    margin = study.plan.analysis.margins.get(MEASURE, 0.0)
    caption = (
        "Held-out loss on the probe domain at the end of a probe, nats per token, means over "
        "seeds. Onset: phases of the stream before the first probe that is worse than a fresh "
        f"model, or than the best probe before it, by more than {margin:g} in the mean and with an "
        "interval above zero, corrected over the probes (Bonferroni)."
    )
    return Table(name="onset", caption=caption, columns=columns, rows=rows)


def _onset_row(one: ProbedArm) -> tuple[Cell, ...]:
    arm = one.arm
    head: tuple[Cell, ...] = (arm.name, arm.size, arm.density, arm.live, one.domain)
    if one.loss is None:
        return (*head, 0, one.planned, *(None,) * 5, "no seed has all probes", None)
    means = one.loss.mean
    return (
        *head,
        len(one.loss.seeds),
        one.planned,
        *(float(value) for value in (means[0], means.min(), means[-1])),
        *_ends(one.fresh, one.best),
    )


def _ends(*found: Onset | None) -> tuple[Cell, ...]:
    known = [one for one in found if one is not None]
    return (*(one.after for one in known), *(one.text() for one in known))


def probes_table(study: Study, probed: tuple[ProbedArm, ...]) -> Table:
    """Every point of the figure."""
    columns = (
        ARM,
        Column(key="after", heading="phases before"),
        SEEDS,
        Column(key="loss", heading="loss"),
        Column(key="low", heading="interval", pair=True),
        Column(key="high", heading="high"),
        Column(key="change", heading="minus fresh"),
        Column(key="change_low", heading="interval", pair=True),
        Column(key="change_high", heading="high"),
    )
    rows = []
    for one in probed:
        if one.loss is None or one.change is None:
            continue
        for k, after in enumerate(one.loss.x):
            cells: list[Cell] = []
            for curve in (one.loss, one.change):
                low, high = curve.band or (None, None)
                cells.append(float(curve.mean[k]))
                cells += [None if end is None else float(end[k]) for end in (low, high)]
            rows.append((one.arm.name, int(after), len(one.loss.seeds), *cells))
    caption = f"The probes one by one. Intervals stand for each by itself. {level_text(study)}"
    return Table(name="probes", caption=caption, columns=columns, rows=tuple(rows))
