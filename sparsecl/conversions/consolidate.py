"""consolidate: the weights as one plain safetensors file, with config and tokenizer."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecl.conversions.common import CKPT_HELP, open_checkpoint, progress, size_text

if TYPE_CHECKING:
    from sparsecl.checkpoint.find import Found


def add_parser(subparsers: Any) -> None:
    """The command line of `consolidate`."""
    parser = subparsers.add_parser(
        "consolidate",
        help="one model.safetensors (dense layout, absent weights 0), config.yaml, tokenizer",
        description="The fp32 masters under their names, in dense layout: absent weights are 0, "
        "and the embedding keeps the rows of its padding. config.yaml has the model part of the "
        "run's config. The tokenizer is looked for, by digest, in the data cache of the run.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="data cache, if it is not where the config says"
    )


def run(args: argparse.Namespace) -> int:
    """Convert; the exit code."""
    from sparsecl.checkpoint.canonical import MASTER, num_bytes
    from sparsecl.checkpoint.consolidate import MODEL_FILE, consolidate
    from sparsecl.checkpoint.run_tokenizer import find_tokenizer

    found, reader = open_checkpoint(args.checkpoint)
    state = reader.manifest.state
    config = state.get("config") or config_of_run(found)
    tokenizer = find_tokenizer({**state, "config": config}, args.cache)
    masters = [(MASTER, name) for name in reader.manifest.parameters]
    with progress("consolidate", num_bytes(reader, masters)) as advance:
        consolidate(
            reader, args.out, dtype=args.dtype, config=config, tokenizer=tokenizer, advance=advance
        )
    size = size_text((args.out / MODEL_FILE).stat().st_size)
    print(f"wrote {args.out}: {len(masters)} parameters of {found.folder}, {args.dtype}, {size}")
    if config is None:
        print("no config.yaml: the checkpoint does not hold the config of its run")
    if tokenizer is None:
        print("no tokenizer: that of the run was not found; give its data cache by --cache")
    return 0


def config_of_run(found: "Found") -> dict[str, Any] | None:
    """The config in the run folder; None for a checkpoint that stands alone."""
    if found.run is None:
        return None
    from sparsecl import config as configs
    from sparsecl.checkpoint.find import CONFIG
    from sparsecl.engine.run_config import RunConfig

    return configs.to_dict(configs.load(RunConfig, found.run / CONFIG))
