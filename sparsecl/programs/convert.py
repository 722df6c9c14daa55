"""Convert, compare and check checkpoints offline, one tensor at a time.

    python tools/convert.py verify runs/demo-1a2b3c
    python tools/convert.py diff runs/first runs/second --tolerance 1e-6
    python tools/convert.py reshard runs/demo-1a2b3c/checkpoints/step_750 step_750 --tensor 2
    python tools/convert.py consolidate runs/demo-1a2b3c model --dtype bf16
    python tools/convert.py sparse-export runs/demo-1a2b3c live.safetensors
    python tools/convert.py hf-export runs/demo-1a2b3c gpt2
    python tools/convert.py hf-import gpt2 imported --by magnitude --density 0.1
    python tools/convert.py nanogpt-import ckpt.pt imported --trust-checkpoint
    python tools/convert.py from-deepspeed zero imported --config run.yaml --trust-checkpoint

Where a command takes a checkpoint, a run folder stands for its newest valid one. Every digest is
checked before a tensor is used. One process, on the CPU; nothing that is there is overwritten.
"""

import argparse
import warnings
from collections.abc import Sequence
from typing import NoReturn

# None of these imports torch: a mistyped flag costs no seconds.
from sparsecl import command
from sparsecl.conversions import (
    consolidate,
    diff,
    from_deepspeed,
    hf_export,
    hf_import,
    nanogpt_import,
    reshard,
    sparse_export,
    verify,
)

COMMANDS = (
    reshard,
    consolidate,
    sparse_export,
    diff,
    verify,
    hf_export,
    hf_import,
    nanogpt_import,
    from_deepspeed,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run one command. Returns the exit code; see sparsecl/errors.py."""
    options = parser().parse_args(arguments)
    # What Megatron says about hardware that is not there, if a command imports it.
    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
    return command.report(lambda: options.run(options))


def parser() -> argparse.ArgumentParser:
    """The command line of all commands."""
    result = command.Parser(description=__doc__)
    subparsers = result.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        before = set(subparsers.choices)
        module.add_parser(subparsers)
        for name in set(subparsers.choices) - before:
            subparsers.choices[name].set_defaults(run=module.run)
    return result


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
