"""Run a study: many runs from one file, a few at a time, then one table and a report.

    python launch/sweep.py launch/experiments/exp1_density.yaml
    python launch/sweep.py launch/experiments/exp2_topology.yaml --scale 100m --jobs 8 --dry_run
    python launch/sweep.py launch/experiments/exp2_topology.yaml --scale 100m --where slurm
    python launch/sweep.py launch/streams/studies/permuted_mnist.yaml
    python launch/sweep.py studies/density --power --effect 0.05

It may be stopped (Ctrl-C, kill) and started again with the same command: what is done stays done,
and runs that were going on continue from their last checkpoint. With --where slurm it submits what
is neither done nor in the queue, and returns at once. With --power it runs nothing: it reads a
study folder and prints what each planned contrast can show, and how many seeds an effect needs.
A study with a block `tune` is tuned first: with --where slurm, call it again when the trials are
done. A study whose base has a block `stream` is one of streams: each arm is one run of
launch/stream.py with all seeds side by side. --only runs some arms of the test, by name or pattern
('*_ewc'); the report shows what there is.
"""

import argparse
import contextlib
import fnmatch
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from sparsecl import command, signals
from sparsecl.checkout import ROOT, TRAIN, beside, config_file, study_file
from sparsecl.config import help_text
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.findings.collect import collect, status_text
from sparsecl.experiments.findings.compare import compare
from sparsecl.experiments.findings.power import power_text, study_power
from sparsecl.experiments.findings.study_table import study_table
from sparsecl.experiments.findings.tuned import diverged, undecided
from sparsecl.experiments.running.local import LocalPlace, visible_gpus
from sparsecl.experiments.running.overview import Overview
from sparsecl.experiments.running.runner import Runner, python_script
from sparsecl.experiments.running.tuning import tune, tuned_before
from sparsecl.experiments.running.warm import WarmPlace
from sparsecl.experiments.study.build_plan import make_plan, open_study, plan_text
from sparsecl.experiments.study.controls import Priced
from sparsecl.experiments.study.stream_plan import stream_plan_text
from sparsecl.experiments.study.stream_study import StreamStudyConfig, is_of_streams
from sparsecl.experiments.study.study_file import ScaledStudy, StudyConfig, read_study
from sparsecl.experiments.study.study_plan import PLAN, TUNING, StudyPlan, read_plan
from sparsecl.experiments.study.trials import priced_once, trials_plan, tuning_text
from sparsecl.locks import lock_folder
from sparsecl.programs._stream_sweep import STREAM, open_streams, plan_streams

FORKS = Path(__file__).with_name("_forks.py")
INTERFERENCE = ROOT / "tools" / "interference.py"
RUN_FAILED = 1  # exit code: the study is finished as far as it can be, but a run has failed


def help_study() -> str:
    """Every key of a study file with its type, default and meaning."""
    of_streams = help_text(StreamStudyConfig)
    return f"{help_text(StudyConfig)}\n\nWith base.stream, a study of streams:\n\n{of_streams}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "study", type=study_file, help="study file (YAML); with --power the folder of a study"
    )
    parser.add_argument("--scale", help="one of its scales; default: the first")
    parser.add_argument("--base", type=config_file, help="run config laid over the study's base")
    parser.add_overrides()
    parser.add_argument("--seeds", type=int, help="number of seeds, in place of the study's")
    parser.add_argument(
        "--study_dir", type=Path, help="study folder; default studies/<name>-<scale>-<digest>"
    )
    parser.add_argument("--where", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--site",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="over the settings of slurm/site.env",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="runs at the same time; default: one per core, GPU; in Slurm, no limit of ours",
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        metavar="ARM,...",
        help="run these arms alone, and what they need (patterns too: 'sparse_*'); the others can "
        "follow later",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run; default 1")
    parser.add_argument("--dry_run", action="store_true", help="show what would run, then stop")
    parser.add_argument(
        "--power", action="store_true", help="read a study folder, say what it can show, then stop"
    )
    parser.add_argument(
        "--effect",
        type=float,
        help="with --power: true difference in the primary measure; default: the plan's margin",
    )
    parser.add_argument(
        "--help_study",
        action=command.Tell,
        nargs=0,
        const=help_study,
        help="every key of a study file, then stop",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code; see sparsecl/errors.py."""
    options = parse(arguments)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    warnings.filterwarnings("ignore")

    def work() -> int:
        signals.answer_by(_interrupt)
        return sweep(options)

    return command.report(work)


def _interrupt(name: str) -> None:
    raise KeyboardInterrupt(name)


def sweep(options: argparse.Namespace) -> int:
    """Plan, run, show."""
    if options.threads < 1 or (options.jobs is not None and options.jobs < 1):
        raise UserError("--jobs and --threads must be >= 1")
    if options.power:
        return show_power(options)
    if options.effect is not None:
        raise UserError("--effect says what to count seeds for; it needs --power")
    if is_of_streams(options.study):
        return sweep_streams(options)
    from sparsecl import dist

    # DeepSpeed warns on stderr when it has to find this out by itself.
    os.environ.setdefault("DS_ACCELERATOR", dist.device().type)
    from sparsecl.engine.price import price

    study = read_study(
        options.study,
        scale=options.scale,
        base=options.base,
        overrides=options.set,
        seeds=options.seeds,
    )
    words = ["python", "launch/sweep.py", *sys.argv[1:]]
    priced = partial(price, ds_path=study.ds_config)
    make = partial(make_plan, study, priced, threads=options.threads, command=words)
    plan, configs = make()
    only(plan, options.only)  # a name that is not there is told before any work
    folder = options.study_dir or Path("studies") / f"{plan.name}-{plan.scale}-{plan.digest[:8]}"
    if options.dry_run:
        if study.config.tune is not None:
            tuning = tuned_before(folder, plan)
            if tuning is None:
                return preview_trials(folder, study, plan, priced, options)
            plan, _ = make(tuning=tuning)
        print(plan_text(plan))
        print(f"\nStudy folder: {folder}")
        if (folder / PLAN).exists():
            print(status_text(folder, plan))
        if options.where == "slurm":
            on_slurm(folder, plan, options)
        return 0
    beside(TRAIN, "the installation is not whole")
    with lock_folder(folder, "--study_dir"):
        if study.config.tune is not None:
            try:
                work = partial(try_out, options)
                tuning = tune(folder, study, plan, priced, command=words, work=work)
            except KeyboardInterrupt:
                return stopped()
            if tuning is None:
                return 0 if options.where == "slurm" else RUN_FAILED
            plan, configs = make(tuning=tuning)
        plan = open_study(folder, plan, configs)
        print(plan_text(plan))
        print(f"\nStudy folder: {folder}\n", flush=True)
        prepare_data(configs, plan)
        if options.where == "slurm":
            return 0 if not on_slurm(folder, plan, options) or show(folder) else RUN_FAILED
        some = only(plan, options.only)
        try:
            finished = run(folder, some, options)
        except KeyboardInterrupt:
            return stopped()
        whole = finished and len(some.runs) == len(plan.runs)
        measured = not (whole and plan.analysis.interference) or measure_interference(folder)
        show(folder)
        return 0 if finished and measured else RUN_FAILED


def sweep_streams(options: argparse.Namespace) -> int:
    """The same for a study of streams."""
    plan, configs = plan_streams(options)
    some = only(plan, options.only)
    folder = options.study_dir or Path("studies") / f"{plan.name}-{plan.scale}-{plan.digest[:8]}"
    if options.dry_run:
        print(f"{stream_plan_text(plan)}\n\nStudy folder: {folder}")
        if (folder / PLAN).exists():
            print(status_text(folder, plan))
        return 0
    with lock_folder(folder, "--study_dir"):
        plan = open_streams(folder, plan, configs)
        print(f"{stream_plan_text(plan)}\n\nStudy folder: {folder}\n", flush=True)
        try:
            finished = run(folder, some, options)
        except KeyboardInterrupt:
            return stopped()
        show(folder)
        return 0 if finished else RUN_FAILED


def only(plan: StudyPlan, arms: Sequence[str] | None) -> StudyPlan:
    """The plan with the runs of some arms, and those that they need; None = all of it.

    Raises:
        UserError: there is no such arm.
    """
    if arms is None:
        return plan
    known, wanted = [arm.name for arm in plan.arms], []
    for pattern in arms:
        found = fnmatch.filter(known, pattern)
        if not found:
            raise UserError(f"--only {pattern}: there is no such arm; there are {', '.join(known)}")
        wanted += found
    return replace(plan, runs=plan.with_needed(wanted))


def show_power(options: argparse.Namespace) -> int:
    """What the planned contrasts of a study folder can show. Nothing is run or written."""
    if options.effect is not None and not 0 < options.effect < math.inf:
        raise UserError(f"--effect {options.effect:g}: must be a difference > 0")
    study = collect(options.study)
    powers = study_power(study, compare(study).contrasts, options.effect)
    print(power_text(study, powers))
    return 0


def stopped() -> int:
    """Say so. Returns the exit code."""
    print("\nstopped; the same command goes on from here", file=sys.stderr)
    return command.INTERRUPTED


def try_out(
    options: argparse.Namespace, place: Path, trials: StudyPlan, configs: dict[str, RunConfig]
) -> None:
    """Run, or submit, the trials of a tuning that have no answer yet."""
    print(f"{plan_text(trials)}\n\nTrials     {place}\n", flush=True)
    prepare_data(configs, trials)
    if options.where == "slurm":
        on_slurm(place, trials, options)
        print(
            "\nThese are the runs of the tuning. When they are done, give the same command again: "
            "it submits the test, or first a wider grid if a best value is at an end of it."
        )
        return
    run(place, replace(trials, runs=tuple(undecided(place, trials))), options)
    if undecided(place, trials):
        print(f"\nTuning is not done, so the test cannot begin.\n{status_text(place, trials)}")


def preview_trials(
    folder: Path,
    study: ScaledStudy,
    plan: StudyPlan,
    priced: Callable[[RunConfig], Priced],
    options: argparse.Namespace,
) -> int:
    """--dry_run of a study that is not tuned yet. Returns the exit code."""
    asked = study.config.tune
    assert asked is not None
    priced = priced_once(priced, asked)
    trials, _ = trials_plan(study, priced, asked.keys, threads=options.threads, command=())
    print(f"{plan_text(plan)}\n\n{tuning_text(study, trials, plan)}\n\nStudy folder: {folder}")
    begun = [folder / name for name in TUNING if (folder / name / PLAN).exists()]
    for place in begun:
        print(f"{place.name}: {status_text(place, read_plan(place))}")
    if options.where == "slurm":
        place = begun[-1] if begun else folder / TUNING[0]
        on_slurm(place, read_plan(place) if begun else trials, options)
    return 0


def prepare_data(configs: dict[str, RunConfig], plan: StudyPlan) -> None:
    """Tokenise once, before runs that would all wait for each other. Seeds count where text is
    drawn from them."""
    from sparsecl.data.prepare import prepare

    done = set()
    for config in configs.values():
        drawn = any(domain.source == "synthetic" for domain in config.data.domains)
        for seed in plan.seeds if drawn else plan.seeds[:1]:
            key = (config.data, config.tokenizer, seed)
            if key not in done:
                done.add(key)
                prepare(
                    replace(config.data),
                    config.tokenizer,
                    context=config.model.resolved().context,
                    seed=seed,
                    show_progress=sys.stderr.isatty(),
                    verify=False,  # each run does it
                )


def run(folder: Path, plan: StudyPlan, options: argparse.Namespace) -> bool:
    """All runs that are not done. Returns True if every run is done in the end."""
    import torch

    gpus = visible_gpus(torch.cuda.device_count())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    slots = options.jobs or len(gpus) or max(1, (cores or 1) // options.threads)
    if gpus or sys.platform != "linux":
        place = LocalPlace(slots=slots, threads=options.threads, gpus=gpus)
    else:
        place = WarmPlace(slots=slots, threads=options.threads, server=FORKS, subject=plan.subject)
    script = python_script(STREAM if plan.subject == "stream" else TRAIN)
    with contextlib.closing(place):
        return Runner(folder, plan, place, train=script, watch=Overview()).run()


def on_slurm(folder: Path, plan: StudyPlan, options: argparse.Namespace) -> bool:
    """Say where the runs stand, and submit what is missing. Returns True if every run is done."""
    from sparsecl.experiments.running import slurm

    place = slurm.SlurmPlace(ROOT, limit=options.jobs, site=options.site)
    queued = slurm.queue(folder)
    found = slurm.standings(folder, plan, queued)
    print(slurm.standing_text(folder, plan, found), flush=True)
    runs = slurm.missing(plan, found)
    if plan.is_tuning:  # a value that diverged has its answer
        runs = [run for run in runs if not diverged(folder, run)]
    else:
        wanted = only(plan, options.only).runs
        runs = [run for run in runs if run in wanted]
    if options.dry_run:
        jobs = place.jobs(folder, plan, runs, (array for array, _ in queued)) if runs else []
        print(f"\n{slurm.preview(folder, jobs)}" if jobs else "\nnothing to submit")
    elif runs:
        print("\n".join(place.submit(folder, plan, runs)), flush=True)
    return all(standing == "done" for standing in found.values())


def measure_interference(folder: Path) -> bool:
    """On the last checkpoint of every run. Returns True if it worked everywhere."""
    return subprocess.run([*python_script(INTERFERENCE), str(folder)]).returncode == 0


def show(folder: Path) -> bool:
    """The table and the report. Returns True if every run is done."""
    from sparsecl.experiments.report import write_report

    study = collect(folder)
    print(f"\n{study_table(study)}")
    print(f"\nReport     {write_report(study, folder / 'report')}")
    return study.counts()["done"] == len(study.results)


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    signals.listen()
    command.start(main, output_counts=False)
