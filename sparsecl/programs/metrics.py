"""Recompute every score of one or more runs from their scalars.jsonl alone.

    python tools/metrics.py runs/demo-1a2b3c
    python tools/metrics.py runs/dense runs/er-0.1 --plot forgetting.png

Needs numpy only (and matplotlib for --plot): run folders can be read on any laptop.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from sparsecl import command
from sparsecl.errors import UserError
from sparsecl.metrics.by_domain import by_domain
from sparsecl.metrics.comparison import side_by_side
from sparsecl.metrics.records import RunRecords, read_records
from sparsecl.metrics.summary import summarize
from sparsecl.metrics.table import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, compute, print. Returns the exit code."""
    options = parser().parse_args(arguments)
    return command.report(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Compute, print, draw."""
    records = [read_records(run) for run in options.runs]
    summaries = [summarize(run) for run in records]
    name_apart(summaries, options.runs)
    print(as_json(summaries) if options.json else as_text(summaries))
    if options.plot:
        draw(records, summaries, options.plot)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command.Parser(description=__doc__)
    result.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    result.add_argument("--json", action="store_true", help="print JSON (a list for several runs)")
    result.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw one run, or curves and bars of several"
    )
    return result


def name_apart(summaries: list[dict[str, Any]], paths: Sequence[Path]) -> None:
    """Add the path to names that more than one run has."""
    names = [summary["name"] for summary in summaries]
    for summary, path in zip(summaries, paths, strict=True):
        if names.count(summary["name"]) > 1:
            summary["name"] = f"{summary['name']} ({path})"


def as_json(summaries: list[dict[str, Any]]) -> str:
    """One object for one run, a list for several."""
    value = summaries[0] if len(summaries) == 1 else summaries
    return json.dumps(value, indent=2, allow_nan=False)


def as_text(summaries: list[dict[str, Any]]) -> str:
    """The full report of each run; for several runs, last, where they are seen, both tables."""
    reports = [report(summary) for summary in summaries]
    if len(summaries) > 1:
        try:
            reports.append(f"{by_domain(summaries)}\n\n{side_by_side(summaries)}")
        except ValueError as error:
            reports.append(f"no comparison: {error}")
    return ("\n\n" + "=" * 100 + "\n\n").join(reports)


def draw(records: list[RunRecords], summaries: list[dict[str, Any]], path: Path) -> None:
    """Write the picture.

    Raises:
        UserError: if the name is not that of a PNG or there is nothing to compare.
        CannotCreateError, StorageError: if the file cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--plot {path}: only PNG files are written, end the name in .png")
    # Imported here: the tables must print where matplotlib is not installed.
    from sparsecl.experiments.plots import comparison_plot, forgetting_plot

    try:
        if len(records) == 1:
            forgetting_plot(records[0], path)
        else:
            comparison_plot(records, summaries, path)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--plot {path}: {error}") from None
    print(f"wrote {path}", file=sys.stderr)


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
