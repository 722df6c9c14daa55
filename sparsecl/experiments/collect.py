"""A study folder read back: every run, done or not, and the figures of those that are.

Figures are recomputed from scalars.jsonl; results.json only says that the run has ended. A run
that is missing or has failed is listed as such, and never stands in an average.
"""

import contextlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsecl.errors import DataError, UserError
from sparsecl.experiments.measures import measures
from sparsecl.experiments.plan import (
    Arm,
    Run,
    StudyPlan,
    failure_file,
    read_plan,
    run_folder,
)
from sparsecl.metrics.matrix import FloatArray, ResultMatrix
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

    @property
    def matrix(self) -> ResultMatrix | None:
        """The result matrix of a run that is done."""
        return None if self.summary is None else matrix_of(self.summary)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study with its results."""

    folder: Path
    plan: StudyPlan
    results: tuple[RunResult, ...]
    """One for each run of the plan, in its order."""

    def of(self, arm: str) -> list[RunResult]:
        """All runs of an arm, in the order of the seeds."""
        return [result for result in self.results if result.run.arm == arm]

    def done(self, arm: str) -> list[RunResult]:
        """Those of them that are done."""
        return [result for result in self.of(arm) if result.status == "done"]

    def values(self, arm: str, measure: str) -> dict[int, float]:
        """Seed -> value, for the runs that are done and have one."""
        found = ((r.run.seed, (r.values or {}).get(measure)) for r in self.done(arm))
        return {seed: value for seed, value in found if value is not None}

    def pairs(self, arm: str, against: str, measure: str) -> tuple[list[int], FloatArray]:
        """Seeds that both arms have, and the differences arm - against, in the same order."""
        mine, other = self.values(arm, measure), self.values(against, measure)
        seeds = [seed for seed in self.plan.seeds if seed in mine and seed in other]
        return seeds, np.array([mine[seed] - other[seed] for seed in seeds], dtype=np.float64)

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
    return Study(folder=folder, plan=plan, results=tuple(_result(folder, run) for run in plan.runs))


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


def _result(folder: Path, run: Run) -> RunResult:
    place = run_folder(folder, run)
    if not has_ended(place):
        status, reason = status_of(folder, run)
        return RunResult(run=run, folder=place, status=status, reason=reason)
    records = read_ended(place)
    summary = summarize(records)
    return RunResult(
        run=run,
        folder=place,
        status="done",
        records=records,
        summary=summary,
        values=measures(summary),
    )


def _reason(file: Path) -> str:
    try:
        value = json.loads(read_plain(file))
        return str(value["reason"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
        return f"{file.name} cannot be read"


def pairing_problems(study: Study) -> list[str]:
    """What makes runs of one seed unequal where they must be equal: data, tokenizer, row order."""
    problems = []
    for seed in study.plan.seeds:
        here = [r for r in study.results if r.run.seed == seed and r.summary is not None]
        for key in ("data", "tokenizer"):
            found = {(r.summary or {})["digests"].get(key): r.run.name for r in reversed(here)}
            if len(found) > 1:
                names = ", ".join(sorted(found.values()))
                problems.append(f"seed {seed}: runs have different {key} digests: {names}")
    return problems


def arms_of(study: Study, *roles: str) -> list[Arm]:
    """Arms with one of these roles, in the order of the plan."""
    return [arm for arm in study.plan.arms if arm.role in roles]
