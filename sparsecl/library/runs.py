"""A whole run from Python, and what a run folder holds. Reading one needs NumPy only."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl import config as configs
from sparsecl.checkout import ZERO1, config_file, ds_file
from sparsecl.config_nodes import compose
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.measures import measures
from sparsecl.metrics.matrix import ResultMatrix
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize

ConfigLike = RunConfig | Path | str | Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """Validation scores of one domain over a run, on one text throughout."""

    tokens: NDArray[np.int64]
    """[N], trained so far."""

    loss: NDArray[np.float64]
    """[N], nats per token."""


@dataclass(frozen=True)
class Run:
    """What a run has measured, as far as it is."""

    folder: Path
    config: RunConfig
    matrix: ResultMatrix
    """loss, bits_per_byte, accuracy [P + 1, D]: row 0 before training, row p + 1 after phase p."""

    metrics: dict[str, float | None]
    """F_last, final_loss, learned_loss, ...; None where there is none. `sparsecl metrics` says what
    they are."""

    curves: dict[str, Curve]
    """By domain."""


def run_config(config: ConfigLike) -> RunConfig:
    """A run config from a YAML file (also by the name of one that comes with the package), or from
    nested mappings, whose missing keys have their defaults.

    Raises:
        UserError: one line, naming the key.
    """
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, Mapping):
        try:
            text = json.dumps(config)
        except TypeError as error:
            raise UserError(f"config: {error}; give what YAML can hold, or a file") from None
        nodes = compose(text, "config")
        assert nodes is not None
        return configs.overlay(RunConfig(), nodes, "")
    return configs.load(RunConfig, config_file(str(config)))


def train(
    config: ConfigLike,
    *,
    ds_config: Path | str = ZERO1,
    run_dir: Path | str | None = None,
) -> Run | None:
    """Train a model through all phases, as `sparsecl train` does: a run that was stopped goes on,
    one that is finished is read. Collective over the world.

    In this process alone, or in every process that a launcher has started.

    Args:
        config: see `run_config`.
        ds_config: DeepSpeed JSON.
        run_dir: None = runs/<name>-<digest>.

    Returns:
        What `read_run` finds; None on ranks other than 0.

    Raises:
        UserError: one line.
    """
    from sparsecl import dist

    # DeepSpeed warns on stderr when it has to find this out by itself.
    os.environ.setdefault("DS_ACCELERATOR", dist.device().type)
    from sparsecl.engine import run

    folder = None if run_dir is None else Path(run_dir)
    prepared = run.check(run_config(config), ds_file(str(ds_config)), folder)
    try:
        summary = run.run(prepared)
    finally:
        dist.shutdown()
    return None if summary is None else read_run(prepared.run_dir)


def read_run(folder: Path | str) -> Run:
    """Read a run folder; the run may still be going on.

    Raises:
        MissingInputError: there is no such run.
        DataError: it is damaged, or has no evaluations yet.
    """
    place = Path(folder)
    records = read_records(place)
    curves: dict[str, dict[int, float]] = {name: {} for name in records.domains}
    for one in records.evaluations:
        curves[one.domain][one.tokens] = one.inside.loss
    return Run(
        folder=place,
        config=configs.load(RunConfig, place / "config.yaml"),
        matrix=ResultMatrix.from_records(records),
        metrics=measures(summarize(records)),
        curves={
            name: Curve(np.array(sorted(at), np.int64), np.array([at[t] for t in sorted(at)]))
            for name, at in curves.items()
        },
    )
