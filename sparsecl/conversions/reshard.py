"""reshard: a checkpoint as another tensor-parallel size would have written it."""

import argparse
from pathlib import Path
from typing import Any

from sparsecl.conversions.common import CKPT_HELP, open_checkpoint, progress


def add_parser(subparsers: Any) -> None:
    """The command line of `reshard`."""
    parser = subparsers.add_parser(
        "reshard",
        help="a checkpoint as another tensor-parallel size would have written it",
        description="A run resumes from any tensor-parallel size without this: reading is then "
        "slower, no more. For many ranks, cut once and read often. To go on with the result, put "
        "it into RUN/checkpoints/ under its name step_N.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("out", type=Path, metavar="OUT", help="new checkpoint folder")
    parser.add_argument("--tensor", type=int, required=True, metavar="T", help="tp size")


def run(args: argparse.Namespace) -> int:
    """Convert; the exit code."""
    from sparsecl.checkpoint.canonical import keys, num_bytes
    from sparsecl.checkpoint.rewrite import reshard

    found, reader = open_checkpoint(args.checkpoint)
    with progress("reshard", num_bytes(reader, keys(reader))) as advance:
        made = reshard(reader, args.out, tp_size=args.tensor, advance=advance)
    print(
        f"wrote {args.out}: step {made.step} of {found.folder}, tp size "
        f"{reader.manifest.tp_size} -> {made.tp_size}, {len(made.files)} files"
    )
    return 0
