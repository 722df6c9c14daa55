"""verify: every hash and every law of one checkpoint, or of all of a run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecl.conversions.common import progress

if TYPE_CHECKING:
    from sparsecl.checkpoint.laws import Verdict


def add_parser(subparsers: Any) -> None:
    """The command line of `verify`."""
    parser = subparsers.add_parser(
        "verify",
        help="every hash and every law of a checkpoint, or of all of a run",
        description="One line per checkpoint. Exit code 0 if all is well, 65 if anything is not.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="checkpoint or run folder")


def run(args: argparse.Namespace) -> int:
    """Check and print; 0 or 65."""
    from sparsecl.checkpoint.find import all_checkpoints
    from sparsecl.checkpoint.laws import check_laws
    from sparsecl.engine.resume.saved import STATE
    from sparsecl.errors import DataError

    whole = True
    for folder in all_checkpoints(args.path):
        with progress(folder.name, canonical_bytes(folder)) as advance:
            verdict = check_laws(folder, state=STATE, advance=advance)
        print(line(folder, verdict), flush=True)
        whole = whole and not verdict.problems
    return 0 if whole else DataError.exit_code


def line(folder: Path, verdict: "Verdict") -> str:
    """What is said of one checkpoint."""
    if not verdict.problems:
        return f"{folder}: good: {verdict.about}"
    more = len(verdict.problems) - 1
    first = verdict.problems[0].removeprefix(f"{folder}: ")
    return f"{folder}: BAD: {first}" + (f" (and {more} more)" if more else "")


def canonical_bytes(folder: Path) -> int:
    """For the bar, before anything is checked: bytes of the tensor files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())
