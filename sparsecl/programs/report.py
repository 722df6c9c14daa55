"""Make the report of a study from its folder: a page, figures, tables.

    python tools/report.py studies/density
    python tools/report.py studies/density --out report

Works on a study that is still running or where runs have failed: it shows what is there, and says
what is not. Needs numpy, scipy and matplotlib only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sparsecl import command
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, read, write. Returns the exit code."""
    options = parser().parse_args(arguments)
    return command.report(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Read, write."""
    study = collect(options.study)
    place = options.study / "report" if options.out is None else options.out
    print(f"wrote {write_report(study, place)}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command.Parser(description=__doc__)
    result.add_argument("study", type=Path, metavar="STUDY_DIR", help="folder with a plan.json")
    result.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: STUDY_DIR/report)"
    )
    return result


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
