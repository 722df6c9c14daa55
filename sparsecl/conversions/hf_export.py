"""hf-export: a folder that transformers' GPT2LMHeadModel and AutoTokenizer load."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecl.conversions.common import CKPT_HELP, open_checkpoint, progress, size_text
from sparsecl.errors import DataError, MissingInputError, UserError

if TYPE_CHECKING:
    from sparsecl.checkpoint.find import Found
    from sparsecl.data.tokenizer import Tokenizer
    from sparsecl.engine.run_config import RunConfig


def add_parser(subparsers: Any) -> None:
    """The command line of `hf-export`."""
    parser = subparsers.add_parser(
        "hf-export",
        help="a folder for Hugging Face transformers: weights, config, tokenizer, model card",
        description="The fp32 masters as a GPT-2, Llama or Qwen2 with equal logits: absent weights "
        "are zeros, the padding of the vocabulary is left out. tokenizer.json gives "
        "the ids of the run's tokenizer. topology.safetensors keeps the live sets for hf-import.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="data cache, if it is not where the config says"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE.model|FOLDER",
        help="SentencePiece model, or folder with the tokenizer.json, of the run",
    )


def run(args: argparse.Namespace) -> int:
    """Export; the exit code."""
    from sparsecl.checkpoint.canonical import MASTER, num_bytes
    from sparsecl.checkpoint.hf import WEIGHTS, export_weights
    from sparsecl.checkpoint.hf_tokenizer import write_tokenizer
    from sparsecl.checkpoint.new_output import new_folder
    from sparsecl.conversions.card import card_text
    from sparsecl.files import atomic_open

    found, reader = open_checkpoint(args.checkpoint)
    state = reader.manifest.state
    config = config_of(found, state)
    tokenizer = tokenizer_of(args, config, state)
    shape = config.shape
    if shape.columns > 1:
        raise UserError(
            f"{found.folder}: its model has {shape.columns} columns that hear each other, and "
            "transformers has no such model. `convert.py consolidate` writes all of its weights to "
            "one file, and tools/sample.py reads the checkpoint."
        )
    vocab_size = tokenizer.vocab_size if tokenizer else int(state["vocab_size"])
    note: str | None = "the checkpoint knows of no tokenizer"
    masters = [(MASTER, name) for name in reader.manifest.parameters]
    with new_folder(args.out) as folder:
        with progress("hf-export", num_bytes(reader, masters)) as advance:
            export_weights(
                reader,
                shape,
                folder,
                vocab_size=vocab_size,
                eot_id=tokenizer.eot_id if tokenizer else None,
                init_std=config.model.init_std,
                dtype=args.dtype,
                advance=advance,
            )
        if tokenizer:
            note = write_tokenizer(tokenizer, folder, context=shape.context)
        text = card_text(
            config,
            state,
            reader.topologies,
            step=reader.manifest.step,
            vocab_size=vocab_size,
            has_tokenizer=note is None,
        )
        with atomic_open(folder / "README.md", "wb") as file:
            file.write(text.encode())
    size = size_text((args.out / WEIGHTS).stat().st_size)
    print(f"wrote {args.out}: step {reader.manifest.step} of {found.folder}, {args.dtype}, {size}")
    if note:
        print(f"no tokenizer.json: {note}")
    return 0


def config_of(found: "Found", state: Mapping[str, Any]) -> "RunConfig":
    """The config of the run that made a checkpoint: in the checkpoint, else in its run folder.

    Raises:
        MissingInputError: it is in neither.
        DataError: the checkpoint's is no run config.
    """
    import json

    from sparsecl import config as configs
    from sparsecl.checkpoint.find import CONFIG
    from sparsecl.config_nodes import compose
    from sparsecl.engine.run_config import RunConfig

    if "config" in state:
        try:
            nodes = compose(json.dumps(state["config"]), f"{found.folder}: config")
            assert nodes is not None
            return configs.overlay(RunConfig(), nodes, "")
        except UserError as error:
            raise DataError(f"{error}") from None
    if found.run is None:
        raise MissingInputError(
            f"{found.folder}: neither the checkpoint nor a run folder above it has a config"
        )
    return configs.load(RunConfig, found.run / CONFIG)


def tokenizer_of(
    args: argparse.Namespace, config: "RunConfig", state: Mapping[str, Any]
) -> "Tokenizer | None":
    """The tokenizer whose digest the checkpoint holds; None if it holds none.

    Raises:
        MissingInputError: it cannot be found.
        UserError: --tokenizer is another one.
    """
    from sparsecl import config as configs
    from sparsecl.checkpoint.run_tokenizer import find_tokenizer
    from sparsecl.data.hf_tokenizer import read_hf
    from sparsecl.data.tokenizer import Tokenizer, read_model

    digest = state.get("tokenizer")
    if args.tokenizer:
        given: Tokenizer = (read_hf if args.tokenizer.is_dir() else read_model)(args.tokenizer)
        if digest not in (None, given.digest):
            raise UserError(
                f"--tokenizer {args.tokenizer}: digest {given.digest[:12]}, the checkpoint was "
                f"trained with {str(digest)[:12]}"
            )
        return given
    if digest is None and "vocab_size" in state:
        return None
    found = find_tokenizer({**state, "config": configs.to_dict(config)}, args.cache)
    if found is None:
        raise MissingInputError(
            f"the tokenizer {str(digest)[:12]} of the run is not below data.cache_dir="
            f"{args.cache or config.data.cache_dir}; give it by --cache DIR or --tokenizer FILE"
        )
    return found
