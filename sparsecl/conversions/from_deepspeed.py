"""from-deepspeed: the fp32 weights of a DeepSpeed ZeRO 1, 2 or 3 checkpoint.

DeepSpeed's shards are pickles that torch's restricted unpickler refuses, and DeepSpeed's own
zero_to_fp32, which knows their layouts, reads them with the other one: code in them runs. So
nothing is opened unless the user trusts the whole folder.
"""

import argparse
import contextlib
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecl.conversions.start import write_run
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.opening import plain_input, read_plain

if TYPE_CHECKING:
    import torch

    from sparsecl.checkpoint.foreign import Weights
    from sparsecl.data.tokenizer import Tokenizer
    from sparsecl.engine.run_config import RunConfig
    from sparsecl.topology.layer import LayerTopology

State = Mapping[str, "torch.Tensor"]
LATEST = "latest"
MODEL = "model.safetensors"


def add_parser(subparsers: Any) -> None:
    """The command line of `from-deepspeed`."""
    parser = subparsers.add_parser(
        "from-deepspeed",
        help="fp32 weights of a DeepSpeed ZeRO checkpoint (trusted ones only: pickles)",
        description="A checkpoint that engine.save_checkpoint has written, ZeRO 1, 2 or 3, without "
        "tensor parallelism. With --config of a run of this project: a checkpoint to start from. "
        "Without: one model.safetensors under the names that it has.",
    )
    parser.add_argument(
        "source", type=Path, metavar="FOLDER", help="folder with `latest` and global_stepN"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument("--tag", help="folder of the step; default: what `latest` names")
    parser.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="run config of the model in it"
    )
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="read it: code that its files hold is executed, with your rights",
    )


def run(args: argparse.Namespace) -> int:
    """Convert; the exit code."""
    if not args.trust_checkpoint:
        raise UserError(
            f"{args.source}: DeepSpeed checkpoints are pickles, and reading them runs code that is "
            "in them. Give --trust-checkpoint if you know who made this one"
        )
    tag = find_tag(args.source, args.tag)
    config = read_config(args.config)  # before the long work
    print(
        f"{args.source / tag}: pickles, read by deepspeed.utils.zero_to_fp32; code in them runs",
        file=sys.stderr,
    )
    state = read_fp32(args.source, tag)
    if config is None:
        from sparsecl.model.shapes import EMBEDDING

        write_plain(args.out, state)
        print(f"wrote {args.out / MODEL}: {len(state)} fp32 tensors under the names they had")
        if EMBEDDING in state:
            print("its names are ours: with --config it becomes a checkpoint to start from")
        return 0
    from sparsecl.engine.topology import draw_topologies

    topologies = draw_topologies(config)
    tokenizer = known_tokenizer(config)
    weights = our_weights(args.source / tag, state, config, topologies, tokenizer)
    write_run(args.out, weights, topologies, config, tokenizer, may_drop=False)
    print(f"wrote {args.out}: a checkpoint to start from, {len(state)} parameters of {tag}")
    return 0


def find_tag(folder: Path, given: str | None) -> str:
    """Name of the step's folder.

    Raises:
        MissingInputError: there is none.
        DataError: `latest` names something outside, or tensor parallelism was used.
    """
    tag = given
    if tag is None:
        try:
            tag = read_plain(folder / LATEST, plain_input).decode().strip()
        except (OSError, UnicodeDecodeError):
            raise MissingInputError(
                f"{folder / LATEST}: cannot be read; name the folder of the step by --tag"
            ) from None
    if Path(tag).name != tag or tag in ("", ".", ".."):
        raise DataError(f"{folder}: the tag {tag[:80]!r} is no name of a folder in it")
    if not (folder / tag).is_dir():
        raise MissingInputError(f"{folder / tag}: no such folder")
    others = sorted((folder / tag).glob("*mp_rank_0[1-9]*_model_states.pt"))
    if others:
        raise DataError(f"{others[0]}: tensor parallelism was used; DeepSpeed cannot join that")
    return tag


def read_config(path: Path | None) -> "RunConfig | None":
    """The run config, if one was given."""
    if path is None:
        return None
    from sparsecl import config as configs
    from sparsecl.engine.run_config import RunConfig

    return configs.load(RunConfig, path)


def read_fp32(folder: Path, tag: str) -> State:
    """The weights by name, joined from the shards. Runs code that the files hold.

    Raises:
        DataError: a file is missing or damaged.
    """
    # Otherwise it says on stdout that it found no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does
            found: Any = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=tag)
            return found
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        RuntimeError,
        EOFError,
        ImportError,
        pickle.UnpicklingError,
    ) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"{folder / tag}: no whole ZeRO checkpoint ({type(error).__name__}: {lines[0][:120]})"
        ) from None


def write_plain(out: Path, state: State) -> None:
    """All tensors in one file of the new folder `out`."""
    from safetensors.torch import save_file

    from sparsecl.checkpoint.new_output import new_folder

    with new_folder(out) as folder:
        # Copies: tied tensors share memory, which the format cannot say.
        tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
        save_file(tensors, folder / MODEL, {"format": "pt"})


def known_tokenizer(config: "RunConfig") -> "Tokenizer | None":
    """The tokenizer, where the config alone decides it; None for one that was trained."""
    from sparsecl.data.given_tokenizer import given

    return given(config.tokenizer)


def our_weights(
    where: Path,
    state: State,
    config: "RunConfig",
    topologies: "Mapping[str, LayerTopology]",
    tokenizer: "Tokenizer | None",
) -> "Weights":
    """The state dict of our own module as weights of the config's model, of either storage.

    Raises:
        DataError: if names or sizes are not those of the config.
    """
    import torch

    from sparsecl.checkpoint.entries import entries
    from sparsecl.checkpoint.foreign import Weights
    from sparsecl.model.shapes import VOCABULARY

    shape = config.model.resolved()
    vocab_size = tokenizer.vocab_size if tokenizer else config.tokenizer.vocab_size
    wanted = entries(shape, vocab_size, frozenset())
    other = sorted(wanted.keys() ^ state.keys())
    if other:
        raise DataError(f"{where}: its parameters are not those of --config: {other[0]}")

    def read(name: str) -> torch.Tensor:
        value = state[name].float()
        if name in VOCABULARY:
            value = value[:vocab_size]
        layer = name.removesuffix(".weight")
        if layer in topologies and value.dim() == 1:  # packed: the live values in row-major order
            mask = torch.from_numpy(topologies[layer].mask())
            if value.numel() == topologies[layer].num_live:
                value = torch.zeros(mask.shape).masked_scatter_(mask, value)
        if tuple(value.shape) != wanted[name].shape:
            raise DataError(
                f"{where}: {name} is {list(value.shape)}, --config has {list(wanted[name].shape)}"
            )
        return value

    return Weights(shape, vocab_size, read, ())
