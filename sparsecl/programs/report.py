"""Make the report of a study from its folder: a page, figures, tables.

    python tools/report.py studies/density
    python tools/report.py studies/density --out report
    python tools/report.py studies/density --publish launch/experiments/results/exp1_density

Works on a study that is still running or where runs have failed: it shows what is there, and says
what is not. --publish writes in its place what a repository keeps of a study that is done: plan,
tables, some figures, a page of words. Needs numpy, scipy and matplotlib only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sparsecl import command
from sparsecl.experiments.findings.collect import collect
from sparsecl.experiments.report import write_report
from sparsecl.experiments.report.publish import publish


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, read, write. Returns the exit code."""
    options = parser().parse_args(arguments)
    return command.report(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Read, write."""
    study = collect(options.study)
    if options.publish is not None:
        print(f"wrote {publish(study, options.publish)}")
        return
    place = options.study / "report" if options.out is None else options.out
    print(f"wrote {write_report(study, place)}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command.Parser(description=__doc__)
    result.add_argument("study", type=Path, metavar="STUDY_DIR", help="folder with a plan.json")
    place = result.add_mutually_exclusive_group()
    place.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: STUDY_DIR/report)"
    )
    place.add_argument(
        "--publish", type=Path, metavar="DIR", help="folder for what a repository keeps"
    )
    return result


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
