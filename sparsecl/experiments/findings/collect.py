"""A study folder read back: every run, done or not, and the figures of those that are.

Figures are recomputed from scalars.jsonl; results.json only says that the run has ended. A run
that is missing or has failed is listed as such, and never stands in an average.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsecl.errors import DataError, UserError
from sparsecl.experiments.study.measures import (
    BY_SUBJECT,
    Measure,
    counted_shares,
    measures,
)
from sparsecl.experiments.study.stream_measures import stream_curves, stream_measures
from sparsecl.experiments.study.study_plan import (
    Run,
    StudyPlan,
    failure_file,
    read_plan,
    run_folder,
)
from sparsecl.metrics.forgetting import MIN_IMPROVEMENT, exposed_rows
from sparsecl.metrics.matrix import ResultMatrix
from sparsecl.metrics.records import RunRecords
from sparsecl.metrics.results import has_ended, read_ended
from sparsecl.metrics.summary import matrix_of, summarize
from sparsecl.opening import read_plain

Status = Literal["done", "failed", "begun", "missing"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run of the plan, and what is there of it."""

    run: Run
    folder: Path
    status: Status
    """begun: it has a folder with records and no end."""

    reason: str = ""
    """failed: why, in one line."""

    records: RunRecords | None = None
    """Only of runs that are done, like all that follows."""

    summary: dict[str, Any] | None = None
    values: dict[str, float | None] | None = None
    """The measures by name."""

    shares: dict[str, float] | None = None
    """NF by domain, of the domains that count."""

    curves: Mapping[str, Sequence[float]] | None = None
    """Of a network on a stream: figure -> its value by task (streams/records.py)."""

    @property
    def matrix(self) -> ResultMatrix | None:
        """The result matrix of a run that is done."""
        return None if self.summary is None else matrix_of(self.summary)


@dataclass(frozen=True)
class Sides:
    """Both arms of a contrast in one measure."""

    first: dict[int, float]
    """Seed -> value."""
    second: dict[int, float]
    domains: list[int] = field(default_factory=list)
    """NF: how many domains are behind each value; empty for the other measures."""


def _common(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """Domains that count in every run."""
    return [name for name in (runs[0] if runs else {}) if all(name in run for run in runs)]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study with its results."""

    folder: Path
    plan: StudyPlan
    results: tuple[RunResult, ...]
    """One for each run of the plan, in its order."""

    @property
    def measures(self) -> dict[str, Measure]:
        """What is measured of its runs."""
        return BY_SUBJECT[self.plan.subject]

    @property
    def failures(self) -> dict[str, str]:
        """Run that failed -> why."""
        return {r.run.name: r.reason for r in self.results if r.status == "failed"}

    def of(self, arm: str) -> list[RunResult]:
        """All runs of an arm, in the order of the seeds."""
        return [result for result in self.results if result.run.arm == arm]

    def done(self, arm: str) -> list[RunResult]:
        """Those of them that are done, in the first of the study's orders: what curves and
        matrices are made of."""
        shown = (self.plan.shown_order, "")
        return [r for r in self.of(arm) if r.status == "done" and r.run.order in shown]

    def statuses(self, arm: str) -> dict[int, Status]:
        """Seed -> status of its runs in all orders: failed if one of them is; done, or missing, if
        all are; else begun."""
        found: dict[int, set[Status]] = {}
        for result in self.of(arm):
            found.setdefault(result.run.seed, set()).add(result.status)
        return {
            seed: "failed" if "failed" in its else its.pop() if len(its) == 1 else "begun"
            for seed, its in found.items()
        }

    def seeds_done(self, arm: str) -> list[int]:
        """Seeds whose runs are all done."""
        return [seed for seed, status in self.statuses(arm).items() if status == "done"]

    def values(self, arm: str, measure: str, order: str | None = None) -> dict[int, float]:
        """Seed -> value, mean over the study's orders, for the seeds whose runs are all done and
        have one; or in one of the orders alone."""
        found: dict[int, list[float | None]] = {}
        for result in self.of(arm):
            if order in (None, result.run.order):
                done = result.values if result.status == "done" else None
                found.setdefault(result.run.seed, []).append((done or {}).get(measure))
        return {
            seed: float(np.mean(values))  # type: ignore[arg-type]  # no value is None
            for seed, values in found.items()
            if None not in values
        }

    def sides(self, arm: str, against: str, measure: str, *, paired: bool) -> Sides:
        """The values of both arms of a contrast.

        NF is averaged anew, over the domains that count in both runs of a pair, or in all runs of
        both arms: a domain that only one of them learned would flatter the other.
        """
        if measure != "NF":
            return Sides(self.values(arm, measure), self.values(against, measure))
        one, two = self.shares(arm), self.shares(against)
        everywhere = _common([*one.values(), *two.values()])
        sides: Sides = Sides({}, {})
        for mine, other, values in ((one, two, sides.first), (two, one, sides.second)):
            for seed, shares in mine.items():
                common = everywhere if not paired else _common([shares, other.get(seed, {})])
                if common:
                    values[seed] = float(np.mean([shares[name] for name in common]))
                    sides.domains.append(len(common))
        return sides

    def shares(self, arm: str) -> dict[int, dict[str, float]]:
        """Seed -> NF by domain, of the domains that count, for the seeds whose runs are all done;
        with several orders by "ORDER DOMAIN"."""
        found: dict[int, dict[str, float]] = {}
        for result in self.of(arm):
            own = result.shares or {}
            named = {f"{result.run.order} {name}".strip(): share for name, share in own.items()}
            found.setdefault(result.run.seed, {}).update(named)
        return {seed: found[seed] for seed in self.seeds_done(arm)}

    def counts(self) -> dict[Status, int]:
        """Number of runs by status."""
        names: tuple[Status, ...] = ("done", "failed", "begun", "missing")
        return {name: sum(r.status == name for r in self.results) for name in names}


def collect(folder: Path) -> Study:
    """Read a study folder. Nothing is written and torch is not needed.

    Raises:
        MissingInputError: if it is not the folder of a study.
        DataError: if the records or the results of a run that is done are damaged.
    """
    plan = read_plan(folder)
    read = _networks if plan.subject == "stream" else _result
    results = tuple(result for run in plan.runs for result in read(folder, run))
    return Study(folder=folder, plan=plan, results=results)


def status_of(folder: Path, run: Run) -> tuple[Status, str]:
    """Status of a run, and the reason if it has failed. Cheap: no records are read. A run whose
    results.json is damaged is not done: started again, it makes the file anew."""
    place = run_folder(folder, run)
    with contextlib.suppress(DataError):  # a run that is started again mends a broken one
        if has_ended(place):
            return "done", ""
    failure = failure_file(folder, run)
    if failure.is_file():
        return "failed", _reason(failure)
    begun = (place / "scalars.jsonl").is_file()
    return ("begun" if begun else "missing"), ""


def status_text(folder: Path, plan: StudyPlan) -> str:
    """Which runs are done, which failed and why, which remain; cheap."""
    found = {run.name: status_of(folder, run) for run in plan.runs}
    counts = Counter(status for status, _ in found.values())
    names: tuple[Status, ...] = ("done", "failed", "begun", "missing")
    lines = [", ".join(f"{counts[name]} {name}" for name in names) + f" of {len(found)} runs"]
    lines += [f"  failed  {name}: {why}" for name, (_, why) in found.items() if why]
    lines += [f"  begun   {name}" for name, (status, _) in found.items() if status == "begun"]
    return "\n".join(lines)


def _result(folder: Path, run: Run) -> list[RunResult]:
    """That of a run on text."""
    place = run_folder(folder, run)
    if not has_ended(place):
        status, reason = status_of(folder, run)
        return [RunResult(run=run, folder=place, status=status, reason=reason)]
    records = read_ended(place)
    summary = summarize(records)
    found = RunResult(
        run=run,
        folder=place,
        status="done",
        records=records,
        summary=summary,
        values=measures(summary),
        shares=counted_shares(summary),
    )
    return [found]


def _networks(folder: Path, run: Run) -> list[RunResult]:
    """One for each network that a run on a stream has; its `run` has that network's seed."""
    place = run_folder(folder, run)
    each = {seed: replace(run, seed=seed) for seed in run.seeds}
    if not has_ended(place):
        status, reason = status_of(folder, run)
        return [
            RunResult(run=one, folder=place, status=status, reason=reason) for one in each.values()
        ]
    curves = stream_curves(place)
    values = stream_measures(curves)
    if set(curves) != set(each):
        raise DataError(f"{place}: has the seeds {sorted(curves)}, planned were {list(run.seeds)}")
    return [
        RunResult(run=one, folder=place, status="done", values=values[seed], curves=curves[seed])
        for seed, one in each.items()
    ]


def _reason(file: Path) -> str:
    try:
        value = json.loads(read_plain(file))
        return str(value["reason"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        return f"{file.name} cannot be read"


def pairing_problems(study: Study) -> list[str]:
    """What makes runs of one seed unequal where they must be equal: data, tokenizer, windows."""
    problems = []
    for seed in study.plan.seeds:
        here = [r for r in study.results if r.run.seed == seed and r.summary is not None]
        for key in ("data", "tokenizer", "windows"):
            found = {(r.summary or {})["digests"].get(key): r.run.name for r in reversed(here)}
            if len(found) > 1:
                names = ", ".join(sorted(found.values()))
                problems.append(f"seed {seed}: runs have different {key} digests: {names}")
    return problems


def nf_notes(study: Study) -> list[str]:
    """Arms whose NF leaves domains out, or that have none."""
    notes = []
    for arm in study.plan.arms:
        counts = [len(shares) for shares in study.shares(arm.name).values()]
        orders = [r.matrix.order for r in study.done(arm.name) if r.matrix is not None]
        exposed = max((len(exposed_rows(order)) for order in orders), default=0)
        exposed *= max(1, len(study.plan.orders))
        if exposed and min(counts) < exposed:
            few, many = min(counts), max(counts)
            some = f"{few}" if few == many else f"{few} to {many}"
            gained = f"gained under {MIN_IMPROVEMENT:g} nats per token"
            notes.append(
                f"NF of {arm.name}: {some} of {exposed} domains count; the others {gained}"
                if many
                else f"{arm.name} has no NF: each domain {gained}"
            )
    return notes
