"""Train small networks on a stream of tasks, and measure whether they stay able to learn.

    python launch/stream.py launch/streams/permuted_mnist.yaml --set stream.data=mnist
    python launch/stream.py --set methods.cbp={}

Without a file it trains launch/streams/small.yaml: a minute on one CPU core.
"""

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from sparsecl import command, signals
from sparsecl import config as configs
from sparsecl.checkout import SMALL_STREAM, beside, stream_file
from sparsecl.errors import UserError, warn

ANT = "slippery_ant"  # the stream that has no images, and so a config of its own


class HelpConfig(argparse.Action):
    """Print every key of a stream's config with its type, default and meaning, and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        from sparsecl.streams.ant_config import AntRunConfig
        from sparsecl.streams.config import StreamRunConfig

        print(configs.help_text(StreamRunConfig))
        print(f"\nWith stream.kind: {ANT}\n\n{configs.help_text(AntRunConfig)}")
        parser.exit()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "config",
        type=stream_file,
        nargs="?",
        default=SMALL_STREAM,
        metavar="FILE",
        help="config of the stream (YAML)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="overrides",
    )
    parser.add_argument("--run_dir", type=Path, help="run folder; default runs/<name>-<digest>")
    parser.add_argument("--dry_run", action="store_true", help="check everything, then stop")
    parser.add_argument(
        "--help_config", action=HelpConfig, nargs=0, help="every key of a config, then stop"
    )
    return parser.parse_args(arguments)


def main() -> int:
    """Returns the exit code; see sparsecl/errors.py."""
    args = parse()
    return command.report(lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Check, then train, then draw."""
    signals.answer_by(signals.leave)
    # The config is read before torch is imported, so a typo costs a second.
    from sparsecl.streams.config import StreamRunConfig

    if args.config != SMALL_STREAM and _kind(args.config) == ANT:
        return train_ant(args)
    if args.config == SMALL_STREAM:
        beside(SMALL_STREAM, "the installation is not whole; give a FILE")
    config = configs.load(StreamRunConfig, args.config, args.overrides)

    from sparsecl import allocator
    from sparsecl.streams import records, run

    allocator.keep_freed_memory()

    prepared = run.check(config, args.run_dir)
    if args.dry_run:
        print(configs.dump(config))
        return
    found = run.run(prepared)
    show(found, records.table(found), prepared.folder, "streams", "stream_plot")


def train_ant(args: argparse.Namespace) -> None:
    """As `train`, on the slippery Ant."""
    from sparsecl.streams.ant_config import AntRunConfig

    config = configs.load(AntRunConfig, args.config, args.overrides)

    from sparsecl import allocator
    from sparsecl.streams import ant_records, ant_run

    allocator.keep_freed_memory()

    prepared = ant_run.check(config, args.run_dir)
    if args.dry_run:
        print(configs.dump(config))
        return
    found = ant_run.run(prepared)
    show(found, ant_records.table(found), prepared.folder, "slippery_ant", "ant_plot")


def show(found: Mapping[str, Any], table: str, folder: Path, module: str, plot: str) -> None:
    """Print what was found, and draw it with a function of experiments/plots/."""
    print(f"\n{table}\n\nResults    {folder / 'results.json'}")
    picture = folder / "stream.png"
    try:
        drawing = importlib.import_module(f"sparsecl.experiments.plots.{module}")
        getattr(drawing, plot)(found, picture)
        print(f"Picture    {picture}")
    # Wide on purpose: a drawing library may fail in any way.
    except Exception as error:
        warn(str(error) if isinstance(error, UserError) else f"{picture}: not drawn ({error!r})")


def _kind(path: Path) -> str:
    """stream.kind of a file, if it says one."""
    for key, value in configs.read_nodes(path).value:
        for inner, kind in value.value if key.value == "stream" else ():
            if getattr(inner, "value", "") == "kind":
                return str(kind.value)
    return ""


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    signals.listen()
    command.start(main, output_counts=False)
