"""The first minutes on a GPU: does it compute what the CPU does, repeat it, and how fast.

    python tools/gpu_check.py --out runs/gpu_check
    python tools/gpu_check.py --out runs/gpu_check --sections losses speed
    python tools/gpu_check.py --out runs/tried --device cpu

Eight sections, each in a process of its own with a limit. One that fails is recorded and the others
go on; the same command goes on after what is done. --out gets check.json with all figures and
check.txt, which is printed too. On a CPU the sections run on tiny models: it tells that their code
works, and nothing about a GPU. The exit code is 1 if a section has failed or was not begun.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sparsecl import command
from sparsecl.benchmarks import gpu_check, process


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, print. Returns the exit code; see sparsecl/errors.py."""
    options = parser().parse_args(arguments)
    process.hush()
    return command.report(lambda: work(options))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command.Parser(description=__doc__)
    result.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the record")
    names = ", ".join(section.name for section in gpu_check.SECTIONS)
    result.add_argument("--sections", nargs="+", metavar="NAME", help=f"some of {names}")
    result.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    result.add_argument(
        "--minutes", type=float, default=8.0, help="no section begins after them (default 8)"
    )
    return result


def work(options: argparse.Namespace) -> int:
    """Run what is not done, and print the record."""
    names = gpu_check.chosen(options.sections)
    found = gpu_check.check(
        options.out,
        device=options.device,
        names=names,
        minutes=options.minutes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(gpu_check.as_text(found))
    return 1 if gpu_check.failed(found, names) else 0


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
