"""What the imports share: a folder with checkpoints/step_0, config.yaml, masks and tokenizer.

The folder is laid out as that of a run, so what takes a run folder takes it too.
"""

import argparse
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecl.conversions.common import progress
from sparsecl.errors import UserError

if TYPE_CHECKING:
    from sparsecl.checkpoint.foreign import Weights
    from sparsecl.data.tokenizer import Tokenizer
    from sparsecl.engine.run_config import RunConfig
    from sparsecl.model.config import ModelShape
    from sparsecl.topology.config import TopologyConfig
    from sparsecl.topology.layer import LayerTopology

MASKS = "masks.npz"


def add_start_options(parser: argparse.ArgumentParser) -> None:
    """OUT and the options about what is read, what lives, and the tokenizer."""
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="read pickles too, by torch's restricted unpickler (weights_only), never by another",
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="leave out what this model has not (biases beside the exact GELU), and say so",
    )
    parser.add_argument("--density", type=float, metavar="RHO", help="live / all, in (0, 1]")
    parser.add_argument(
        "--by",
        choices=("magnitude", "dense"),
        help="magnitude: the largest weights of each matrix live (needs --density); dense: all do",
    )
    parser.add_argument(
        "--topology", metavar="KIND", help="draw the live weights, as topology.kind (--density)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --topology and of the config")
    parser.add_argument(
        "--tokenizer",
        metavar="FILE.model|FOLDER|bytes",
        help="what the ids mean; default: what lies beside the weights",
    )


def check_start_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that contradict each other, before any file is opened."""
    if args.by and args.topology:
        raise UserError(f"--by {args.by} and --topology {args.topology}: give one of them")
    drawn = args.topology or ("magnitude" if args.by == "magnitude" else None)
    if drawn and args.density is None and args.topology != "dense":
        raise UserError(f"{drawn} needs --density: the share of weights that live, such as 0.1")
    if args.density is not None and not drawn:
        raise UserError(f"--density {args.density:g}: of what? Give --by magnitude or --topology")
    if args.density is not None and not 0.0 < args.density <= 1.0:
        raise UserError(f"--density {args.density:g}: must be in (0, 1]")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be >= 0")


def write_start(args: argparse.Namespace, weights: "Weights", *, beside: Path | None) -> None:
    """Write OUT and say what is in it.

    Args:
        args: with the options of `add_start_options`.
        beside: folder that may hold topology.safetensors and tokenizer.model; None = none.
    """
    from sparsecl.topology.config import TopologyConfig

    for note in weights.notes:
        print(note, file=sys.stderr)
    topologies, config, line = choose_topologies(args, weights, beside)
    if topologies and config.kind not in ("dense", args.topology):
        config = TopologyConfig(kind="from_file", path=str(args.out.resolve() / MASKS))
    tokenizer = find_tokenizer(args, weights, beside)
    write_run(
        args.out,
        weights,
        topologies,
        run_config(args, weights, config, tokenizer),
        tokenizer,
        may_drop=bool(args.by or args.topology),
    )
    print(f"wrote {args.out}: a checkpoint to start from, {line}")
    if tokenizer is None:
        print(
            f"no tokenizer: {weights.vocab_size} ids of an unknown meaning. What the config's "
            "tokenizer would make of text has no relation to them; give --tokenizer FILE.model"
        )


def write_run(
    out: Path,
    weights: "Weights",
    topologies: "Mapping[str, LayerTopology]",
    config: "RunConfig",
    tokenizer: "Tokenizer | None",
    *,
    may_drop: bool,
) -> None:
    """Write the new folder `out`: checkpoints/step_0, config.yaml, masks, tokenizer.model."""
    from sparsecl import config as configs
    from sparsecl.checkpoint.canonical import keys, num_bytes
    from sparsecl.checkpoint.hf_tokenizer import MODEL, model_bytes
    from sparsecl.checkpoint.new_output import new_folder
    from sparsecl.checkpoint.start import WeightsSource
    from sparsecl.checkpoint.start import write_start as write_checkpoint
    from sparsecl.data.hf_tokenizer import FOLDER, HfTokenizer
    from sparsecl.data.tokenizer import SentencePieceTokenizer

    state: dict[str, Any] = {
        "config": configs.to_dict(config),
        "topology": {name: found.digest for name, found in topologies.items()},
    }
    if tokenizer:
        state["tokenizer"] = tokenizer.digest
    source = WeightsSource(weights, topologies, state, may_drop=may_drop)
    with new_folder(out) as folder:
        with progress("import", num_bytes(source, keys(source))) as advance:
            write_checkpoint(source, folder, advance)
        (folder / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
        if config.topology.kind == "from_file":
            write_masks(folder / MASKS, topologies)
        if isinstance(tokenizer, SentencePieceTokenizer):
            (folder / MODEL).write_bytes(model_bytes(tokenizer))
        if isinstance(tokenizer, HfTokenizer):
            (folder / FOLDER).mkdir()
            tokenizer.write_whole(folder / FOLDER)


def choose_topologies(
    args: argparse.Namespace, weights: "Weights", beside: Path | None
) -> "tuple[dict[str, LayerTopology], TopologyConfig, str]":
    """Live sets by layer name, the config that stands for them, and a line about them."""
    from sparsecl.checkpoint.start import largest_weights
    from sparsecl.checkpoint.topologies import TOPOLOGY_FILE
    from sparsecl.topology.config import TopologyConfig

    dense = TopologyConfig(kind="dense")
    stored = beside / TOPOLOGY_FILE if beside else None
    if args.topology:
        found, config = draw(args, weights)
        return found, config, f"{args.topology} topology, {live_text(found)}"
    if args.by == "magnitude":
        found = largest_weights(weights.shape, weights.read, args.density)
        return found, TopologyConfig(), f"largest weights, {live_text(found)}"
    if args.by == "dense" or stored is None or not stored.is_file():
        return {}, dense, "dense"
    found = read_stored(stored, weights.shape)
    return found, TopologyConfig(), f"live sets of {TOPOLOGY_FILE}, {live_text(found)}"


def draw(
    args: argparse.Namespace, weights: "Weights"
) -> "tuple[dict[str, LayerTopology], TopologyConfig]":
    """The topologies that a run with this kind, density and seed has."""
    from sparsecl import config as configs
    from sparsecl.engine.run_config import RunConfig
    from sparsecl.model.shapes import layer_shapes
    from sparsecl.topology.build import build_topologies

    density = [] if args.density is None else [f"topology.density={args.density!r}"]
    try:
        config = configs.load(RunConfig, None, [f"topology.kind={args.topology}", *density])
    except UserError as error:
        raise UserError(f"--topology {args.topology}: {error}") from None
    shapes = layer_shapes(weights.shape)
    return build_topologies(config.topology, shapes, seed=args.seed), config.topology


def read_stored(path: Path, shape: "ModelShape") -> "dict[str, LayerTopology]":
    """The live sets that hf-export wrote, by layer name; DataError if they do not fit."""
    from sparsecl.checkpoint.entries import entries
    from sparsecl.checkpoint.topologies import StoredTopologies
    from sparsecl.model.shapes import layer_shapes

    names = [f"{layer.name}.weight" for layer in layer_shapes(shape)]
    known = entries(shape, 1, frozenset(names))
    stored = StoredTopologies(path, {name: known[name] for name in names})
    return {name.removesuffix(".weight"): stored[name] for name in names}


def live_text(topologies: "Mapping[str, LayerTopology]") -> str:
    """How many weights live."""
    from sparsecl.checkpoint.canonical import live_counts

    live, cells = live_counts(topologies)
    return f"{live:,} of {cells:,} weights live" if cells else "all weights live"


def find_tokenizer(
    args: argparse.Namespace, weights: "Weights", beside: Path | None
) -> "Tokenizer | None":
    """The tokenizer that was named or lies beside the weights; UserError if it does not fit."""
    from sparsecl.data.hf_tokenizer import read_hf
    from sparsecl.data.tokenizer import BytesTokenizer, Tokenizer, read_model

    found: Tokenizer | None = None
    if args.tokenizer == "bytes":
        found = BytesTokenizer()
    elif args.tokenizer:
        path = Path(args.tokenizer)
        found = read_hf(path) if path.is_dir() else read_model(path)
    elif beside:
        found = tokenizer_beside(beside)
    if found and found.vocab_size != weights.vocab_size:
        raise UserError(
            f"the tokenizer has {found.vocab_size} ids, the weights have {weights.vocab_size}; "
            "give the right one by --tokenizer FILE.model"
        )
    return found


def tokenizer_beside(folder: Path) -> "Tokenizer | None":
    """The tokenizer in the folder of a model; None if there is none that we can use, and why on
    stderr."""
    from sparsecl.checkpoint.hf_tokenizer import MODEL, TOKENIZER, is_bytes, obstacle
    from sparsecl.data.hf_tokenizer import read_hf
    from sparsecl.data.tokenizer import BytesTokenizer, read_model

    if (folder / MODEL).is_file():
        found = read_model(folder / MODEL)
        # What changes text (Llama 2 has one beside its tokenizer.json) cannot be used as it is.
        if obstacle(found) is None or not (folder / TOKENIZER).is_file():
            return found
    if is_bytes(folder):
        return BytesTokenizer()
    if not (folder / TOKENIZER).is_file():
        return None
    try:
        return read_hf(folder)
    except UserError as error:
        print(f"{TOKENIZER} is passed over: {error}", file=sys.stderr)
        return None


def run_config(
    args: argparse.Namespace,
    weights: "Weights",
    topology: "TopologyConfig",
    tokenizer: "Tokenizer | None",
) -> "RunConfig":
    """A config with the model, topology and tokenizer of the weights; all else is default."""
    from sparsecl.checkpoint.hf_tokenizer import MODEL
    from sparsecl.data.config import TokenizerConfig
    from sparsecl.data.hf_tokenizer import FOLDER
    from sparsecl.engine.run_config import RunConfig
    from sparsecl.model.config import config_of

    try:
        model = config_of(weights.shape)
    except ValueError as error:
        raise UserError(f"the model cannot be one of ours: {error}") from None
    if tokenizer is None:
        words = TokenizerConfig(vocab_size=max(weights.vocab_size, 259))
    elif tokenizer.kind == "bytes":
        words = TokenizerConfig(kind="bytes")
    elif tokenizer.kind == "hf":
        words = TokenizerConfig(kind="hf", path=str(args.out.resolve() / FOLDER))
    else:
        words = TokenizerConfig(
            vocab_size=tokenizer.vocab_size, model=str(args.out.resolve() / MODEL)
        )
    return RunConfig(
        name="imported", seed=args.seed, model=model, topology=topology, tokenizer=words
    )


def write_masks(path: Path, topologies: "Mapping[str, LayerTopology]") -> None:
    """Masks for topology.kind from_file: one bool array [O, I] per layer, one in memory."""
    import numpy as np

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, topology in topologies.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, topology.mask(), allow_pickle=False)
