"""Train a sparse GPT over a sequence of text domains and measure what it forgets.

    deepspeed launch/train.py --ds_config ds_configs/zero1.json
    deepspeed --num_gpus 8 launch/train.py --ds_config ds_configs/zero3.json \\
        --config launch/configs/files.yaml --set precision=bf16

Without --config it trains launch/configs/demo.yaml: minutes on two CPU cores.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from sparsecl import command, place, signals
from sparsecl import config as configs
from sparsecl.checkout import DEMO, ZERO1, beside, config_file, ds_file
from sparsecl.errors import PeerLostError, Preempted, UserError


def help_config() -> str:
    """Every key of a run config with its type, default and meaning."""
    from sparsecl.engine.run_config import RunConfig

    return configs.help_text(RunConfig)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--config",
        type=config_file,
        nargs="+",
        default=[DEMO],
        metavar="FILE",
        help="run config (YAML); of several, later ones are laid over earlier ones",
    )
    parser.add_argument(
        "--ds_config",
        type=ds_file,
        default=ZERO1,
        help="DeepSpeed config (JSON); default ds_configs/zero1.json",
    )
    parser.add_overrides(dest="overrides")
    parser.add_argument(
        "--init_checkpoint",
        dest="overrides",
        action="append_const",
        const="checkpoint.initial=true",
        help="save the state before the first step too: --set checkpoint.initial=true",
    )
    parser.add_argument("--run_dir", type=Path, help="run folder; default runs/<name>-<digest>")
    parser.add_argument("--resume", choices=("auto", "never", "must"), default="auto")
    parser.add_argument(
        "--allow_config_change", action="store_true", help="go on with another config; it is shown"
    )
    parser.add_argument(
        "--allow_data_change", action="store_true", help="go on with other text or tokenizer"
    )
    parser.add_argument(
        "--weights_only",
        action="store_true",
        help="go on from the weights of a checkpoint, with a new optimizer",
    )
    parser.add_argument(
        "--check_sources",
        action="store_true",
        help="compare the files that the cached text was made of with their sha256 at that time",
    )
    parser.add_argument(
        "--inject",
        nargs="+",
        action="extend",
        default=[],
        metavar="FAULT",
        help="faults on purpose, to see what happens; sparsecl/faults.py has their grammar",
    )
    parser.add_argument("--inject_seed", type=int, default=0, help="draws what a fault leaves open")
    parser.add_argument("--dry_run", action="store_true", help="show what would run, then stop")
    parser.add_argument(
        "--help_config",
        action=command.Tell,
        nargs=0,
        const=help_config,
        help="every key of a run config, then stop",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the launcher
    return parser.parse_args(arguments)


def main() -> int:
    """Returns the exit code; see sparsecl/errors.py."""
    args = parse()
    quiet()
    return command.report(place.check) or command.report(lambda: train(args), speaks=_speaks)


def _speaks(error: BaseException) -> bool:
    """True if this rank has to say an error that is not its own alone."""
    first = place.rank() == 0
    if isinstance(error, PeerLostError):
        return True
    if isinstance(error, UserError):
        # In mid-run one rank's mistake is heard from that rank; before, all find the same.
        return first or (_in_run() and not error.agreed)
    return first or (isinstance(error, Preempted) and not _in_run())


def _in_run() -> bool:
    dist = sys.modules.get("sparsecl.dist")
    return dist is not None and dist.is_initialized()


def train(args: argparse.Namespace) -> None:
    """Check, then train, then draw."""
    signals.answer_by(signals.leave)
    first = place.rank() == 0
    # The config is read before torch is imported, so a typo costs a second.
    from sparsecl.engine.run_config import RunConfig

    if args.config == [DEMO]:
        beside(DEMO, "the installation is not whole; give --config FILE")
    config = configs.load(RunConfig, args.config, args.overrides)

    from sparsecl import faults

    faults.arm(args.inject, seed=args.inject_seed, rank=place.rank())

    from sparsecl import allocator, dist

    allocator.keep_freed_memory()
    # DeepSpeed warns on stderr when it has to find this out by itself.
    os.environ.setdefault("DS_ACCELERATOR", dist.device().type)

    from sparsecl.engine import run
    from sparsecl.engine.observe import display
    from sparsecl.engine.resume.changes import Allowed

    prepared = run.check(config, args.ds_config, args.run_dir)
    if args.dry_run:
        if first:
            print(run.dry_run(prepared))
        return
    allowed = Allowed(
        config=args.allow_config_change,
        data=args.allow_data_change,
        new_optimizer=args.weights_only,
    )
    summary = run.run(
        prepared, resume=args.resume, allowed=allowed, check_sources=args.check_sources
    )
    if summary is not None:
        print(f"\nResults    {prepared.run_dir / 'results.json'}")
        draw(prepared.run_dir)
        print(f"Watch      {display.watch(prepared.run_dir)}")
    dist.shutdown()


def draw(run_dir: Path) -> None:
    """The picture of a finished run. If there can be none, the run is not worth less."""
    from sparsecl.errors import warn

    picture = run_dir / "forgetting.png"
    try:
        from sparsecl.experiments.plots import forgetting_plot

        forgetting_plot(run_dir, picture)
        print(f"Picture    {picture}")
    # Wide on purpose: a drawing library may fail in any way.
    except Exception as error:
        warn(str(error) if isinstance(error, UserError) else f"{picture}: not drawn ({error!r})")


def quiet() -> None:
    """Silence what libraries say about hardware that is not there, and calm their threads.

    Acts on libraries that are not imported yet.
    """
    # OpenMP threads that wait spin; on a machine with other work that starves everybody. This
    # many turns keep the speed of an idle machine (demo step on two cores: within 5 %).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
    warnings.filterwarnings("ignore", category=FutureWarning)


def start() -> NoReturn:
    """Be the whole process, as a command. launch/train.py does the first two lines sooner."""
    signals.listen()
    place.begin()
    command.start(main, output_counts=False)
