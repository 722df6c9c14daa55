"""Train small networks on a stream of tasks, and measure whether they stay able to learn.

    python launch/stream.py launch/streams/permuted_mnist.yaml --set stream.data=mnist
    python launch/stream.py --set methods.cbp={}

Without a file it trains launch/streams/small.yaml: a minute on one CPU core.
"""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from yaml.nodes import MappingNode

from sparsecl import command, signals
from sparsecl import config as configs
from sparsecl.checkout import SMALL_STREAM, beside, stream_file
from sparsecl.errors import UserError, warn
from sparsecl.programs._stream_kinds import ANT, kind_of


def help_config() -> str:
    """Every key of a stream's config with its type, default and meaning."""
    from sparsecl.streams.ant_config import AntRunConfig
    from sparsecl.streams.config import StreamRunConfig

    ant = configs.help_text(AntRunConfig)
    return f"{configs.help_text(StreamRunConfig)}\n\nWith stream.kind: {ANT}\n\n{ant}"


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
    parser.add_overrides(dest="overrides")
    parser.add_argument("--run_dir", type=Path, help="run folder; default runs/<name>-<digest>")
    parser.add_argument("--dry_run", action="store_true", help="check everything, then stop")
    parser.add_argument(
        "--help_config",
        action=command.Tell,
        nargs=0,
        const=help_config,
        help="every key of a config, then stop",
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
    if args.config == SMALL_STREAM:
        beside(SMALL_STREAM, "the installation is not whole; give a FILE")
    config: Any = configs.load(_config_type(args.config), args.config, args.overrides)

    from sparsecl import allocator

    allocator.keep_freed_memory()

    kind = kind_of(config.stream.kind)
    prepared = kind.check(config, args.run_dir)
    if args.dry_run:
        print(configs.dump(config))
        return
    found = kind.run(prepared)
    print(f"\n{kind.table(found)}\n\nResults    {prepared.folder / 'results.json'}")
    picture = prepared.folder / "stream.png"
    try:
        kind.plot(found, picture)
        print(f"Picture    {picture}")
    # Wide on purpose: a drawing library may fail in any way.
    except Exception as error:
        warn(str(error) if isinstance(error, UserError) else f"{picture}: not drawn ({error!r})")


def _config_type(path: Path) -> type[Any]:
    """Of what `stream.kind` of a file says."""
    from sparsecl.streams.ant_config import AntRunConfig
    from sparsecl.streams.config import StreamRunConfig

    for key, value in configs.read_nodes(path).value:
        if key.value == "stream" and isinstance(value, MappingNode):
            if any((inner.value, kind.value) == ("kind", ANT) for inner, kind in value.value):
                return AntRunConfig
    return StreamRunConfig


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    signals.listen()
    command.start(main, output_counts=False)
