"""hf-import: a model of transformers as a checkpoint that a run can start from."""

import argparse
from pathlib import Path
from typing import Any

from sparsecl.conversions.start import add_start_options, check_start_options, write_start


def add_parser(subparsers: Any) -> None:
    """The command line of `hf-import`."""
    parser = subparsers.add_parser(
        "hf-import",
        help="GPT-2, Llama or Qwen2 of Hugging Face as a checkpoint to start from, with a config",
        description="Only .safetensors are read unless --trust-checkpoint is given. The folder "
        "that hf-export writes comes back as it was: weights bit for bit (in fp32), live sets, "
        "tokenizer.",
    )
    parser.add_argument(
        "source", type=Path, metavar="FOLDER_OR_FILE", help="folder or .safetensors file"
    )
    add_start_options(parser)


def run(args: argparse.Namespace) -> int:
    """Import; the exit code."""
    from sparsecl.checkpoint.hf_import import read_model

    check_start_options(args)
    weights = read_model(args.source, trusted=args.trust_checkpoint, approximate=args.approximate)
    write_start(args, weights, beside=args.source if args.source.is_dir() else args.source.parent)
    return 0
