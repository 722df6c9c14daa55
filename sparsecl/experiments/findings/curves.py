"""Curves of an arm over its phases, one for each seed, with a band for their mean.

The axis is phases: 0 is before training, p + 1 the end of phase p, and between them the share of
the phase's tokens that were trained. On it runs stay comparable whose first phase was cut short.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsecl.experiments.findings.collect import RunResult, Study
from sparsecl.metrics.bootstrap import MIN_SEEDS, half_width
from sparsecl.metrics.matrix import FloatArray
from sparsecl.metrics.records import RunRecords
from sparsecl.metrics.speed import phase_begin


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One quantity of one arm."""

    arm: str
    seeds: tuple[int, ...]
    """Those of the runs that have the whole curve."""
    x: FloatArray
    """[G] phases, rising."""
    values: FloatArray
    """[n, G], one row a seed, all finite."""
    band: tuple[FloatArray, FloatArray] | None
    """Pointwise t interval [G] of the mean over seeds; None below MIN_SEEDS."""

    @property
    def mean(self) -> FloatArray:
        """[G], over seeds."""
        return self.values.mean(axis=0)


def domain_curve(study: Study, arm: str, domain: str) -> Curve | None:
    """Validation loss of a domain over training, every evaluation of it, on the text that is scored
    inside phases; None without runs."""
    lines = {}
    for result in study.done(arm):
        points = _evaluations(result, domain)
        if len(points) > 1 and np.isfinite(list(points.values())).all():
            lines[result.run.seed] = points
    return _joined(study, arm, lines)


def round_curve(study: Study, arm: str, domain: str | None = None) -> Curve | None:
    """Loss after each phase: of a domain, or the mean over all domains; None without runs.

    Of runs with unequal numbers of phases those with the most are taken.
    """
    rows = {}
    for result in study.done(arm):
        matrix = result.matrix
        if matrix is None or (domain is not None and domain not in matrix.domains):
            continue
        loss = matrix.loss[1:]
        values = loss.mean(axis=1) if domain is None else loss[:, matrix.domains.index(domain)]
        if len(values) and np.isfinite(values).all():
            rows[result.run.seed] = dict(enumerate(values.tolist(), start=1))
    return _joined(study, arm, rows)


def plasticity_curve(study: Study, arm: str, name: str) -> Curve | None:
    """A figure of the plasticity panel at every phase end; None if no run has it throughout."""
    rows = {}
    for result in study.done(arm):
        panel = (result.summary or {}).get("plasticity") or []
        points = {row["phase"] + 1.0: row.get(name) for row in panel}
        known = {x: value for x, value in points.items() if value is not None}
        if known:
            rows[result.run.seed] = known
    return _joined(study, arm, rows)


def plasticity_names(study: Study) -> list[str]:
    """Every figure that some run of the study has in its panel, in the order of the panel."""
    names: dict[str, None] = {}
    for result in study.results:
        for row in (result.summary or {}).get("plasticity") or []:
            names |= dict.fromkeys(key for key, value in row.items() if value is not None)
    return [name for name in names if name not in ("phase", "step", "tokens")]


def mean_matrix(study: Study, arm: str) -> tuple[FloatArray, tuple[int, ...]] | None:
    """Mean loss matrix [P + 1, D] of an arm, and the seeds in it; None without finished runs."""
    found = {r.run.seed: r.matrix for r in study.done(arm) if r.matrix is not None}
    longest = max((matrix.num_phases for matrix in found.values()), default=0)
    kept = {seed: m.loss for seed, m in found.items() if m.num_phases == longest}
    return (np.mean(list(kept.values()), axis=0), tuple(kept)) if kept else None


def order_of(study: Study) -> tuple[int, ...]:
    """Domain of each phase of the stream, from a run that learns in sequence; () without runs."""
    for result in study.results:
        if result.run.order not in ("", study.plan.shown_order):
            continue
        order = () if result.records is None else result.records.order
        if len(order) == num_phases(study) and min(order, default=-1) >= 0:
            return order
    return ()


def num_phases(study: Study) -> int:
    """Phases of the stream: the most that a run has. 0 without runs."""
    return max((len(r.records.order) for r in study.results if r.records is not None), default=0)


def domains_of(study: Study) -> tuple[str, ...]:
    """The domains of the first run that is done; all runs of a study score the same ones."""
    return next((r.records.domains for r in study.results if r.records is not None), ())


def band(values: FloatArray, level: float) -> tuple[FloatArray, FloatArray] | None:
    """Pointwise t interval of the mean of [n, G] over seeds; None below MIN_SEEDS."""
    if len(values) < MIN_SEEDS:
        return None
    middle, half = values.mean(axis=0), half_width(values, level)
    return middle - half, middle + half


def _joined(study: Study, arm: str, lines: dict[int, dict[float, float]]) -> Curve | None:
    """Put the curves of the seeds on one axis: points that some lack are interpolated."""
    longest = max((max(points) for points in lines.values()), default=0.0)
    kept = {seed: points for seed, points in lines.items() if max(points) == longest}
    if not kept:
        return None
    x = np.array(sorted({at for points in kept.values() for at in points}))
    values = np.array([_at(x, points) for points in kept.values()])
    level = 1 - study.plan.analysis.alpha
    return Curve(
        arm=arm,
        seeds=tuple(kept),
        x=x,
        values=values,
        band=band(values, level),
    )


def _at(x: FloatArray, points: dict[float, float]) -> FloatArray:
    places = sorted(points)
    return np.interp(x, places, [points[at] for at in places])


def _evaluations(result: RunResult, domain: str) -> dict[float, float]:
    """Phases trained -> loss, rounded so that equal places of two seeds are one."""
    records = result.records
    if records is None:
        return {}
    borders = _borders(records)
    points = {}
    for e in records.evaluations:
        if e.domain != domain or e.phase + 1 >= len(borders):
            continue
        begin, end = borders[max(e.phase, 0)], borders[e.phase + 1]
        share = (e.tokens - begin) / (end - begin) if end > begin else 0.0
        points[round(max(e.phase, 0) + share, 4)] = e.inside.loss
    return points


def _borders(records: RunRecords) -> Sequence[int]:
    """Total tokens at which each phase began, and at which the last one ended."""
    begins = [phase_begin(records, phase) for phase in range(len(records.order))]
    ends = [e.tokens for e in records.evaluations if e.at == "phase_end"]
    return [at for at in [*begins, max(ends, default=0)] if at is not None]
