"""Tickets: which weights several runs have moved, when a mask settles, who still finds good ones.

    python tools/tickets.py overlap runs/code runs/math --since runs/base --share 0.05
    python tools/tickets.py overlap runs/code runs/math --above 0 --json overlap.json
    python tools/tickets.py early runs/dense --density 0.2
    python tools/tickets.py stream --after 0 10 --rounds 5 --plot runs/tickets.png

overlap: the ticket of a run is the share of the masked weights that it has moved furthest, or all
that it has moved more than --above. Movement is measured from the checkpoint in --since, else from
the run's own initial weights (checkpoint.initial). For each pair of runs it tells how much they
share, beside what random tickets of these sizes would share, k^2 / N; also over whole rows (output
dimensions) and columns (input dimensions) of the matrices.

early: the masks of the largest weights in successive checkpoints of a run (checkpoint.keep_steps,
checkpoint.every), and in which share of all cells they differ. * marks checkpoints at which the
last five distances are below 0.1: there an early-bird ticket may be drawn (You et al. 2020).

stream: networks learn n tasks of a stream (--after), and then one more again and again, on fewer
and fewer weights: each round removes the share --share of those that are least, and rewinds the
others to the start of the task. Beside it stand random masks of the same densities.

stdout has a table; keys of the file that --json writes:

overlap: share, above; runs: name -> folder; since: name -> folder; pairs: for each pair
  names
  weights, rows, columns   first, second: sizes; both: what they share; chance; cells; ratio
  layers                   matrix -> the same for its weights
early: run, density; distances: step, distance, early
stream: name, stream, measure, seeds, probe_task, share; densities: [rounds + 1], the first one of
  the network as it is; after: n -> ticket, random: accuracies [seeds][rounds + 1]
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

# None of these imports torch: a mistyped flag costs no seconds.
from sparsecl import command
from sparsecl.checkout import SMALL_STREAM, stream_file
from sparsecl.errors import MissingInputError, UserError
from sparsecl.files import check_output, write_json

if TYPE_CHECKING:
    from sparsecl.analysis.tickets import Distance, Overlap, Shared

SHARE = 0.05
AFTER = (0, 10, 50)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, compare, print. Returns the exit code; see sparsecl/errors.py."""
    options = parser().parse_args(arguments)
    return command.report(lambda: work(options))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command.Parser(description=__doc__)
    verbs = result.add_subparsers(dest="verb", required=True)
    overlap = verbs.add_parser("overlap", help="what several runs have moved")
    overlap.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="two or more")
    overlap.add_argument("--since", type=Path, help="checkpoint, or run, that all began with")
    size = overlap.add_mutually_exclusive_group()
    size.add_argument("--share", type=float, help=f"of the masked weights; default {SHARE}")
    size.add_argument("--above", type=float, help="all that have moved more than this")
    early = verbs.add_parser("early", help="distances of masks within a run")
    early.add_argument("run", type=Path)
    early.add_argument("--density", type=float, default=0.2, help="of the masks; default 0.2")
    stream = verbs.add_parser("stream", help="of networks that have learned many tasks")
    stream.add_argument(
        "config", type=stream_file, nargs="?", default=SMALL_STREAM, metavar="FILE",
        help="config of the stream (YAML)",
    )  # fmt: skip
    stream.add_overrides(dest="overrides")
    stream.add_argument(
        "--after", type=int, nargs="+", default=AFTER, metavar="N",
        help=f"tasks that are learned first; default {' '.join(map(str, AFTER))}",
    )  # fmt: skip
    stream.add_argument("--rounds", type=int, default=10, help="of pruning; default 10")
    stream.add_argument(
        "--share", type=float, default=0.2, help="of the weights that a round removes; default 0.2"
    )
    stream.add_argument("--plot", type=Path, metavar="FILE", help="draw the table as PNG")
    for one in (overlap, early, stream):
        one.add_argument("--json", type=Path, metavar="FILE", help="write the figures too")
    return result


def work(options: argparse.Namespace) -> None:
    """Measure, print, write, draw."""
    for flag in ("json", "plot"):
        if (path := getattr(options, flag, None)) is not None:
            check_output(f"--{flag}", path)
    found, text = {"overlap": overlap, "early": early, "stream": stream}[options.verb](options)
    print(text)
    if options.json is not None:
        write_json(options.json, found)
    if options.verb == "stream" and options.plot is not None:
        from sparsecl.experiments.plots.stream_tickets import stream_tickets_plot

        stream_tickets_plot(found, options.plot)


def overlap(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What the file has, and the table."""
    share = SHARE if options.share is None and options.above is None else options.share
    if share is not None and not 0 < share < 1:
        raise UserError(f"--share {share:g}: must be between 0 and 1, for example 0.05")
    if options.above is not None and not options.above >= 0:
        raise UserError(f"--above {options.above:g}: must be >= 0")
    runs = dict(zip(names_of(options.runs), options.runs, strict=True))
    if len(runs) < 2:
        raise UserError("overlap: needs two runs or more")
    for run in options.runs:
        if not run.is_dir():
            raise MissingInputError(f"{run}: no such folder. Name a run or a checkpoint.")
    starts = {name: options.since or run / "initial" / "step_0" for name, run in runs.items()}
    for name, start in starts.items():
        if not start.is_dir():
            raise MissingInputError(
                f"{start}: is not there, so the movement of {name} has no beginning. Give --since, "
                "or train with checkpoint: {initial: true}."
            )
    from sparsecl.analysis.tickets import overlaps

    found = overlaps(runs, starts, share=share, above=options.above)
    made = {
        "share": share,
        "above": options.above,
        "runs": {name: str(path) for name, path in runs.items()},
        "since": {name: str(path) for name, path in starts.items()},
        "pairs": [as_dict(pair) for pair in found],
    }
    return made, overlap_text(found)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names: what of each path the others have not, from the end on.

    Raises:
        UserError: a path is given twice.
    """
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError("overlap: a run is given twice")
    different = [
        place for place in range(1, max(map(len, parts)) + 1)
        if len({words[-place] if place <= len(words) else "" for words in parts}) > 1
    ]  # fmt: skip
    return [
        "/".join(words[-place] for place in reversed(different) if place <= len(words))
        for words in parts
    ]


def as_dict(pair: "Overlap") -> dict[str, Any]:
    """One pair of the file."""

    def values(shared: "Shared") -> dict[str, Any]:
        return {**asdict(shared), "ratio": shared.ratio}

    return {
        "names": list(pair.names),
        **{key: values(getattr(pair, key)) for key in ("weights", "rows", "columns")},
        "layers": {name: values(shared) for name, shared in pair.layers.items()},
    }


def overlap_text(pairs: Sequence["Overlap"]) -> str:
    """A line for each pair: sizes, what is shared, and how often chance gives it."""
    names = [f"{pair.names[0]} and {pair.names[1]}" for pair in pairs]
    width = max(map(len, names))
    lines = [
        f"{'runs':<{width}}  {'weights':>17}  {'shared':>8}  {'chance':>8}  {'ratio':>6}  "
        f"{'rows':>6}  {'columns':>7}"
    ]
    for name, pair in zip(names, pairs, strict=True):
        sizes = f"{pair.weights.first}, {pair.weights.second}"
        lines.append(
            f"{name:<{width}}  {sizes:>17}  {pair.weights.both:>8}  {pair.weights.chance:>8.1f}  "
            f"{_times(pair.weights):>6}  {_times(pair.rows):>6}  {_times(pair.columns):>7}"
        )
    lines.append("ratio, rows, columns: shared over what random tickets of these sizes share")
    return "\n".join(lines)


def _times(shared: "Shared") -> str:
    return "-" if shared.ratio is None else f"{shared.ratio:.2f}"


def early(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What the file has, and the table."""
    if not 0 < options.density < 1:
        raise UserError(f"--density {options.density:g}: must be between 0 and 1, for example 0.2")
    checkpoints = checkpoints_of(options.run)
    if len(checkpoints) < 2:
        raise MissingInputError(
            f"{options.run}: has {len(checkpoints)} checkpoints, and a distance needs two. Train "
            "with checkpoint: {keep_steps: [20, 40, 60]}."
        )
    from sparsecl.analysis.tickets import mask_distances

    found = mask_distances(checkpoints, density=options.density)
    made = {
        "run": str(options.run),
        "density": options.density,
        "distances": [asdict(distance) for distance in found],
    }
    return made, early_text(found)


def checkpoints_of(run: Path) -> list[Path]:
    """All that a run still has, by step: the initial one, those that were kept, the newest."""
    from sparsecl.checkpoint.publish import candidates

    by_step: dict[int, Path] = {}
    for folder in ("checkpoints", "kept", "initial"):
        for path in candidates(run / folder):
            if not path.suffix:  # one that a kill has left aside
                by_step[int(path.name.removeprefix("step_"))] = path
    return [by_step[step] for step in sorted(by_step)]


def early_text(distances: Sequence["Distance"]) -> str:
    """A line for each checkpoint but the first."""
    lines = [f"{'step':>8}  distance"]
    lines += [f"{d.step:>8}  {d.distance:.4f}{' *' if d.early else ''}" for d in distances]
    drawn = next((d.step for d in distances if d.early), None)
    lines.append(
        "no early-bird ticket yet" if drawn is None else f"an early-bird ticket at step {drawn}"
    )
    return "\n".join(lines)


def stream(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What the file has, and the table."""
    if options.plot is not None and options.plot.suffix != ".png":
        raise UserError(f"--plot {options.plot}: only PNG files are written, end the name in .png")
    from sparsecl import config as configs
    from sparsecl.streams.config import StreamRunConfig

    config = configs.load(StreamRunConfig, options.config, options.overrides)

    import torch

    from sparsecl.streams import run
    from sparsecl.streams import tickets as streams

    streams.check(config, options.after, options.rounds, options.share)
    prepared = run.check(config, None)
    torch.set_num_threads(1)  # as a run does
    found = streams.tickets(
        config, prepared.images, after=options.after, rounds=options.rounds, share=options.share,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    return found, streams.table(found)


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)


if __name__ == "__main__":
    sys.exit(main())
