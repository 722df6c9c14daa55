"""nanogpt-import: ckpt.pt of nanoGPT as a checkpoint that a run can start from."""

import argparse
from pathlib import Path
from typing import Any

from sparsecl.conversions.start import add_start_options, check_start_options, write_start


def add_parser(subparsers: Any) -> None:
    """The command line of `nanogpt-import`."""
    parser = subparsers.add_parser(
        "nanogpt-import",
        help="ckpt.pt of nanoGPT as a checkpoint to start from, with a run config",
        description="ckpt.pt is a pickle: it is read with --trust-checkpoint only, and then by "
        "torch's restricted unpickler.",
    )
    parser.add_argument("source", type=Path, metavar="CKPT.pt", help="what its train.py saves")
    add_start_options(parser)


def run(args: argparse.Namespace) -> int:
    """Import; the exit code."""
    from sparsecl.checkpoint.nanogpt import read_nanogpt

    check_start_options(args)
    weights = read_nanogpt(args.source, trusted=args.trust_checkpoint, approximate=args.approximate)
    write_start(args, weights, beside=None)
    return 0
