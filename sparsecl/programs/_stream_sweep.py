"""A study of streams, for programs/sweep.py: one run for each arm, all of its seeds in it."""

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from sparsecl.checkout import ROOT, beside
from sparsecl.errors import UserError
from sparsecl.experiments.study.build_plan import open_study
from sparsecl.experiments.study.stream_plan import make_stream_plan
from sparsecl.experiments.study.stream_study import read_stream_study
from sparsecl.experiments.study.study_plan import ENVIRONMENT, StudyPlan
from sparsecl.files import write_json
from sparsecl.streams.config import StreamRunConfig
from sparsecl.streams.size import NetworkSize, network_size

STREAM = ROOT / "launch" / "stream.py"


def plan_streams(options: argparse.Namespace) -> tuple[StudyPlan, dict[str, StreamRunConfig]]:
    """The plan of the study that a command line names, with every config checked.

    Raises:
        UserError: what is wrong with it, before any work.
    """
    if options.where == "slurm":
        raise UserError(
            "--where slurm: a study of streams runs on one machine; leave it out, or submit "
            "launch/sweep.py itself"
        )
    study = read_stream_study(
        options.study,
        scale=options.scale,
        base=options.base,
        overrides=options.set,
        seeds=options.seeds,
    )
    words = ["python", "launch/sweep.py", *sys.argv[1:]]
    return make_stream_plan(study, _size(), threads=options.threads, command=words)


def _size() -> Callable[[StreamRunConfig], NetworkSize]:
    """Checks a config, and counts what its networks have. A data set is read once."""
    from sparsecl.streams import run

    images = cache(run.read)

    def size(config: StreamRunConfig) -> NetworkSize:
        found = images(config.stream)
        try:
            run.check_config(config, found)
            return network_size(config, found.num_inputs, found.num_classes)
        except UserError as error:
            raise UserError(f"arms.{config.name}: {error}") from None

    return size


def open_streams(folder: Path, plan: StudyPlan, configs: dict[str, StreamRunConfig]) -> StudyPlan:
    """As open_study; and write down what the runs are made with."""
    from sparsecl.engine.resume.environment import environment

    beside(STREAM, "the installation is not whole")
    plan = open_study(folder, plan, configs)
    write_json(folder / ENVIRONMENT, environment())
    return plan
