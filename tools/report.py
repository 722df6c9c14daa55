"""Make the report of a study from its folder: a page, figures, tables.

    python tools/report.py studies/density
    python tools/report.py studies/density --out report

Works on a study that is still running or where runs have failed: it shows what is there, and says
what is not. Needs numpy, scipy and matplotlib only.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

from sparsecl import command  # noqa: E402
from sparsecl.experiments.collect import collect  # noqa: E402
from sparsecl.experiments.report import write_report  # noqa: E402


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


if __name__ == "__main__":
    command.start(main)
