"""Does a sparse model forget less? Train a dense and a sparse one on the same text, and compare.

    sparsecl demo
    sparsecl demo --set phases.steps=150

Text that the installation itself contains is prepared once; then the two models are trained one
after the other, each by the command that is printed, and one table shows both. What the two runs
print goes to a log file beside their folders. The same command again goes on where it was stopped,
or shows what is finished.
"""

import argparse
import os
import shlex
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NoReturn

from sparsecl import command, signals
from sparsecl import config as configs
from sparsecl.checkout import DEMO, TRAIN, ZERO1, beside
from sparsecl.errors import MissingInputError, Preempted, UserError
from sparsecl.files import writing
from sparsecl.metrics.by_domain import MEAN, by_domain, losses_by_domain
from sparsecl.metrics.records import RunRecords
from sparsecl.metrics.results import read_ended
from sparsecl.metrics.summary import summarize
from sparsecl.metrics.table import WIDTH, number
from sparsecl.progress import ProgressBar

# Smaller batches and less scored text than the default config has, so that two runs take minutes.
SHORT = (
    "phases.steps=120",
    "batch.sequences=4",
    "eval={every: 40, tokens: 2048, end_tokens: 8192}",
)
# Run folder, and its name -> what sets it apart from launch/configs/demo.yaml.
ARMS = {"dense": ("topology.kind=dense",), "sparse": ()}
LOOK_SECONDS = 0.2


def main(arguments: list[str] | None = None) -> int:
    """Prepare, train twice, compare. Returns the exit code."""
    options = parser().parse_args(arguments)
    return command.report(lambda: work(options))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command.Parser(description=__doc__)
    result.add_argument(
        "--dir", type=Path, default=Path("runs/demo"), help="folder of both runs; default runs/demo"
    )
    result.add_overrides(help="of both runs")
    return result


def work(options: argparse.Namespace) -> None:
    """The whole demo.

    Raises:
        UserError: one line; also where a run has failed.
        Preempted: it was asked to stop.
    """
    signals.answer_by(_leave)
    from sparsecl.engine.run_config import RunConfig

    beside(DEMO, "the installation is not whole")
    given = {name: [*SHORT, *options.set, f"name={name}", *of] for name, of in ARMS.items()}
    arms = {name: configs.load(RunConfig, [DEMO], settings) for name, settings in given.items()}
    prepare_text(arms["sparse"])
    runs = {name: options.dir / name for name in ARMS}
    with writing(options.dir):
        options.dir.mkdir(parents=True, exist_ok=True)
    train(runs, given)
    records = [read_ended(run) for run in runs.values()]
    print(f"\n{compare(records, options.dir / 'comparison.png')}")


def prepare_text(config: Any) -> None:
    """Read, part and tokenise the text of both runs, with a bar."""
    from sparsecl.data.prepare import prepare

    print("Text: reading and tokenising what is not there yet", flush=True)
    prepare(
        config.data,
        config.tokenizer,
        context=config.model.resolved().context,
        seed=config.seed,
        show_progress=True,
        verify=False,  # each run does it
    )


def train(runs: dict[str, Path], settings: dict[str, list[str]]) -> None:
    """Run what is not finished, one run after the other, under one bar.

    Raises:
        UserError: a run has failed, in its own words.
    """
    from sparsecl.experiments.running.local import LocalPlace
    from sparsecl.experiments.running.runner import steps_done

    total = {name: planned_steps(settings[name]) for name in runs}
    bar = ProgressBar("training", total=sum(total.values()))
    try:
        behind = 0
        for name, run in runs.items():
            words = [*launcher(), "--run_dir", str(run), "--set", *settings[name]]
            log = run.parent / f"{name}.log"
            print(f"\n{shlex.join(words)}\n    (its output: {log})", flush=True)
            bar.begin(name, total=sum(total.values()), done=behind + steps_done(run))
            process = LocalPlace(slots=1, threads=None).start(words, log=log, slot=0)
            try:
                while (code := process.poll()) is None:
                    time.sleep(LOOK_SECONDS)
                    bar.advance(steps=behind + steps_done(run) - bar.done)
            finally:
                process.stop()
            check_end(code, name, log)
            behind += total[name]
            bar.advance(steps=behind - bar.done)
    finally:
        bar.close()


def launcher() -> list[str]:
    """What starts a run, as a user types it: in a checkout that is the working folder, short.

    Raises:
        MissingInputError: DeepSpeed's launcher is not installed.
    """
    here = Path(sys.executable).parent
    path = f"{here}{os.pathsep}{os.environ.get('PATH', '')}"
    found = shutil.which("deepspeed", path=path)
    if found is None:
        raise MissingInputError(f"{here}: has no `deepspeed`. Install it with this package.")
    beside(TRAIN, "the installation is not whole")
    os.environ["PATH"] = path  # its ranks look for the tools of this environment too
    short = [os.path.relpath(x) if x.is_relative_to(Path.cwd()) else str(x) for x in (TRAIN, ZERO1)]
    return ["deepspeed", short[0], "--ds_config", short[1]]


def planned_steps(settings: list[str]) -> int:
    """Optimizer steps of a whole run."""
    from sparsecl.engine.run_config import RunConfig
    from sparsecl.engine.schedule import make_schedule

    return make_schedule(configs.load(RunConfig, [DEMO], settings), world_size=1).num_steps


def check_end(code: int, name: str, log: Path) -> None:
    """Raise the error of a run that has failed, in its own words."""
    from sparsecl.experiments.running.runner import why_ended

    if code:
        error = UserError(f"{name}: {why_ended(code, log)} (all it printed: {log})")
        error.exit_code = code if code > 0 else 128 - code
        raise error


def compare(records: list[RunRecords], picture: Path) -> str:
    """The table, the picture and the answer for a dense run and a sparse one."""
    from sparsecl.experiments.plots import comparison_plot

    summaries = [summarize(run) for run in records]
    comparison_plot(records, summaries, picture)
    return f"{by_domain(summaries)}\n\nPicture    {picture}\n\n{answer(*summaries)}"


def answer(dense: dict[str, Any], sparse: dict[str, Any]) -> str:
    """What the two runs say, and how little that is."""
    means = [losses_by_domain(run, run["domains"], alike=True)[MEAN] for run in (dense, sparse)]
    of_dense, of_sparse = means
    density = sparse["density"]["masked"]

    def versus(column: str) -> str:
        return f"{number(of_sparse[column])} against {number(of_dense[column])}"

    before, now = of_dense["forgotten"], of_sparse["forgotten"]
    if before is None or now is None:
        return "Answer: none, for no domain was followed by another."
    word = "less" if now < before else "more" if now > before else "as much"
    said = (
        f"Answer: with {density:.0%} of the weights of its masked matrices the model forgot "
        f"{word}: F_last {versus('forgotten')} nats; it had learned to {versus('learned')}, "
        f"and ended at {versus('final')}."
    )
    caveat = (
        "Caveat: one seed, a model this small, and one learning rate for both, which may suit one "
        "of them better. `sparsecl sweep` runs studies, which tune every arm and repeat it."
    )
    return "\n".join(textwrap.fill(text, WIDTH) for text in (said, caveat))


def _leave(name: str) -> None:
    raise Preempted(f"{name}: stopped; the same command goes on from the last checkpoint")


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    signals.listen()
    command.start(main)
