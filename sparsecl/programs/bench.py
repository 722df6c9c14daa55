"""What sparse storage and backends cost and save, against the dense model of the same shape.

    python tools/bench.py --layers 2 --width 128 --heads 4 --context 64 --rounds 5
    python tools/bench.py --device cuda --precision bf16 --layers 12 --sequences 64 --out gpu.json
    python tools/bench.py --arms packed_native packed_auto --density 0.01 0.05 0.1 --plot ratio.png
    python tools/bench.py --per_layer --arms packed_native --density 0.01 0.05
    python tools/bench.py --memory --preset 100m --vocab 50257 --sequences 1 --length 64
    python tools/bench.py --wire --layers 2 --width 128 --heads 4 --context 64
    python tools/bench.py --gpu_table --device cuda --precision bf16 --vocab 50257 --out gpu.json
    python tools/bench.py --checkpoints --density 0.01 0.1 --arms masked packed --rounds 3
    python tools/bench.py --vs nanogpt PATH --rounds 15 --threads 2

By default whole steps are timed: forward, backward and optimizer step through DeepSpeed on random
tokens, in one process. The arms of a density take turns: every round is one step of each, on the
same tokens, and the arm that goes first changes from round to round. A ratio is taken within a
round, so that a machine that slows down slows both sides of it; its median and quartiles over the
rounds are reported. Audits and evaluations are not part of a step; the masks are audited once,
after the last round. Each density has its own dense baseline and is dropped before the next.

On a CPU all arms alike run with an allocator that reuses large blocks (sparsecl/allocator.py), as
training does. --per_layer times the linears alone, --growth fits exponents of the step time,
--memory compares bytes with the formulas, --wire counts the bytes of gradient reductions,
--gpu_table gives tokens/s, utilisation and memory of the presets on one device, and
--checkpoints saves in the foreground and beside training. --vs nanogpt PATH steps our dense model
in turns with nanoGPT from a checkout of yours: the file PATH/model.py IS RUN, with your rights.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from sparsecl import command
from sparsecl.benchmarks import (
    checkpoints,
    gpu_table,
    growth,
    layers,
    memory,
    nanogpt,
    process,
    steps,
    wire,
)
from sparsecl.benchmarks.arms import (
    ARMS,
    DEFAULT_ARMS,
    DEFAULT_SIZES,
    arm_configs,
    model_config,
)
from sparsecl.benchmarks.tables import as_table

# None of these imports torch: a typo in a flag costs no wait.
from sparsecl.checkout import ROOT, ZERO1
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.files import check_output, write_json
from sparsecl.model.config import PRESETS
from sparsecl.topology.config import ON_DISK, TopologyKind

MODES = {
    "per_layer": "the linears alone, each shape and a block of them",
    "growth": "how step and update time grow with live weights, tokens and layers",
    "memory": "bytes of model state and of one pass, beside the formulas",
    "wire": "bytes of one gradient reduction over --dp processes, for ZeRO 0 to 3",
    "gpu_table": "tokens/s, MFU and memory of --presets: dense, masked, packed, tiles",
    "checkpoints": "bytes of a checkpoint, and how long training waits for it",
}
OTHERS = ("nanogpt",)
"""What --vs knows; each is the mode of its name."""

# Kinds that --density does not describe.
KINDS = tuple(kind for kind in get_args(TopologyKind) if kind not in ("dense", *ON_DISK))


class _Versus(argparse.Action):
    """--vs KIND PATH: the kind is the mode."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        kind, path = values
        if kind not in OTHERS:
            raise argparse.ArgumentError(self, f"invalid choice: {kind!r} (choose nanogpt)")
        namespace.vs = Path(path)
        if namespace.mode == "steps":
            namespace.mode = kind


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print. Returns the exit code; see sparsecl/errors.py."""
    options = parser().parse_args(arguments)
    process.hush()
    return command.report(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Measure, print, write, draw."""
    check_flags(options)
    configs = make_configs(options)
    result = measure(options, configs)
    print(as_table(result))
    if options.out:
        write_json(options.out, result)
        print(f"wrote {options.out}", file=sys.stderr)
    if options.plot:
        from sparsecl.benchmarks.plot import draw

        draw(result, options.plot)
        print(f"wrote {options.plot}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command.Parser(description=__doc__)
    modes = result.add_mutually_exclusive_group()
    for name, text in MODES.items():
        aliases = ["--layers_only"] if name == "per_layer" else []
        modes.add_argument(
            f"--{name}", *aliases, dest="mode", action="store_const", const=name, help=text
        )
    result.add_argument(
        "--vs",
        nargs=2,
        action=_Versus,
        metavar=("nanogpt", "PATH"),
        help="dense alone, against nanoGPT in the folder PATH; its model.py is run",
    )
    result.set_defaults(mode="steps")
    _add_model(result)
    _add_arms(result)
    numbers = {
        "rounds": (7, "rounds that count"),
        "warmup": (2, "rounds before them that do not"),
        "threads": (None, "CPU threads; default: OMP_NUM_THREADS, or all cores"),
        "dp": (2, "--wire: processes"),
    }
    _add_numbers(result, numbers)
    result.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    result.add_argument("--compile", action="store_true", help="compile the blocks of all arms")
    result.add_argument(
        "--ds_config",
        type=Path,
        default=ZERO1,
        help="DeepSpeed config (JSON); default: ds_configs/zero1.json; --wire has its own",
    )
    result.add_argument("--out", type=Path, metavar="FILE.json", help="write all raw numbers there")
    result.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the result")
    return result


def _add_model(result: argparse.ArgumentParser) -> None:
    result.add_argument("--preset", choices=tuple(PRESETS), help="sizes of a model by name")
    texts = {
        "layers": "transformer blocks",
        "width": "features of the residual stream",
        "heads": "attention heads; a divisor of width",
        "context": "tokens of a sequence",
    }
    sizes = {
        name: (None, f"{text} (default {DEFAULT_SIZES[name]}, or the preset's)")
        for name, text in texts.items()
    }
    others = {
        "vocab": (4096, "token ids"),
        "sequences": (8, "sequences per step"),
        "micro": (None, "sequences per forward pass; default: up to 8 that divide --sequences"),
        "length": (None, "--memory: tokens of a sequence; default: the context"),
    }
    _add_numbers(result, {**sizes, **others})
    result.add_argument(
        "--presets",
        nargs="+",
        choices=tuple(PRESETS),
        default=gpu_table.DEFAULT_PRESETS,
        help="--gpu_table: sizes, in this order (default 100m 500m 1b)",
    )
    result.add_argument(
        "--peak_tflops", type=float, help="--gpu_table: of the device, in place of its data sheet"
    )
    result.add_argument("--activation_checkpointing", action="store_true")


def _add_arms(result: argparse.ArgumentParser) -> None:
    result.add_argument(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=list(DEFAULT_ARMS),
        metavar="NAME",
        help=f"what is compared with dense: of {', '.join(ARMS)}; "
        f"default: {', '.join(DEFAULT_ARMS)}",
    )
    result.add_argument(
        "--density",
        type=float,
        nargs="+",
        default=[0.1],
        metavar="RHO",
        help="live share of the sparse arms; several are measured one after the other",
    )
    result.add_argument("--kind", choices=KINDS, default="er_fixed", help="graph of sparse arms")
    result.add_argument("--block", type=int, metavar="N", help="draw tiles of N x N weights")


def _add_numbers(
    result: argparse.ArgumentParser, numbers: dict[str, tuple[int | None, str]]
) -> None:
    for name, (default, text) in numbers.items():
        shown = "" if default is None else " (default %(default)s)"
        result.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text + shown)


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for what no config checks."""
    least = {"vocab": 2, "rounds": 1, "warmup": 0, "threads": 1, "length": 1, "block": 1, "dp": 2}
    for name, limit in least.items():
        value = getattr(options, name)
        if value is not None and value < limit:
            raise UserError(f"--{name} must be >= {limit}, got {value}")
    if int(os.environ.get("WORLD_SIZE", "1")) != 1:
        raise UserError("bench.py starts alone: with python, not with a launcher")
    tiled = [name for name in options.arms if name.endswith("_block")]
    if tiled and options.block is None:
        raise UserError(f"--arms {tiled[0]} needs tiles: add --block, for example --block 16")
    if options.mode == "wire" and options.device == "cuda":
        raise UserError("--wire counts on the CPU: leave --device cuda out")
    if options.vs and options.mode not in OTHERS:
        raise UserError(f"--vs is a measurement of its own: leave --{options.mode} out")
    if options.mode == "nanogpt":
        nanogpt.find_model(options.vs)
        if options.precision == "fp16":
            raise UserError("--vs nanogpt compares fp32 or bf16: leave --precision fp16 out")
        if options.activation_checkpointing:
            raise UserError("--vs nanogpt: it keeps all activations; no --activation_checkpointing")
        if options.plot:
            raise UserError("--vs nanogpt has no picture: leave --plot out")
    for flag in ("out", "plot"):
        path = getattr(options, flag)
        if path:
            check_output(f"--{flag}", path)


def make_configs(options: argparse.Namespace) -> dict[float, dict[str, RunConfig]]:
    """The run config of every arm, by density and name.

    Raises:
        UserError: if a size or a density is out of range.
    """
    found = {density: arm_configs(options, density) for density in options.density}
    context = model_config(options).resolved().context
    if options.length is not None and options.length > context:
        raise UserError(f"--length={options.length} is longer than the context, {context}")
    return found


def measure(
    options: argparse.Namespace, configs: dict[float, dict[str, RunConfig]]
) -> dict[str, Any]:
    """Do what the mode says. Returns the content of the JSON file."""
    if options.mode in ("growth", "gpu_table"):
        found = {"growth": growth, "gpu_table": gpu_table}[options.mode].measure(options)
    else:
        modes = {
            "steps": steps.measure,
            "per_layer": layers.measure,
            "memory": memory.measure,
            "wire": wire.measure,
            "checkpoints": checkpoints.measure,
            "nanogpt": nanogpt.measure,
        }
        found = modes[options.mode](options, configs)
    config = {key: plain(value) for key, value in vars(options).items()}
    shape = model_config(options).resolved()
    config.update({name: getattr(shape, name) for name in DEFAULT_SIZES})
    return {"mode": options.mode, "config": config, **found}


def plain(value: Any) -> Any:
    """A flag's value as JSON; a path relative to the checkout where it lies inside."""
    if not isinstance(value, Path):
        return value
    return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
