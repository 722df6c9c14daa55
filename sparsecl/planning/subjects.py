"""What is planned: a run config, or the arms of a study with their controls and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsecl import config as configs
from sparsecl.checkout import ZERO1, beside
from sparsecl.engine import ledger
from sparsecl.engine.price import Price, price
from sparsecl.engine.run import vocabulary
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.topology import draw_topologies
from sparsecl.errors import MissingInputError, UserError
from sparsecl.experiments.study import build_plan
from sparsecl.experiments.study.chain import stand_in
from sparsecl.experiments.study.study_file import ScaledStudy, read_study
from sparsecl.experiments.study.trials import trial_config
from sparsecl.experiments.study.tune import own_grid, points
from sparsecl.model.flops import ParameterCounts
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.density import allocate
from sparsecl.topology.layer import LayerTopology


@dataclass(frozen=True)
class LiveCounts:
    """What the ledgers need of a topology: kilobytes, where the masks of a large model are many."""

    num_live: int
    rows: NDArray[np.int64] | None
    columns: NDArray[np.int64] | None

    @classmethod
    def of(cls, topology: LayerTopology, *, degrees: bool) -> "LiveCounts":
        """Count a topology; without degrees for one that no tensor-parallel ranks share."""
        if not degrees:
            return cls(topology.num_live, None, None)
        return cls(topology.num_live, topology.row_degrees(), topology.column_degrees())

    def row_degrees(self) -> NDArray[np.int64]:
        """Live weights of each row."""
        assert self.rows is not None
        return self.rows

    def column_degrees(self) -> NDArray[np.int64]:
        """Live weights of each column."""
        assert self.columns is not None
        return self.columns


@dataclass(frozen=True)
class Subject:
    """One run config, and how often it is run."""

    name: str
    config: RunConfig
    ds_path: Path
    num_runs: int
    counts: ParameterCounts
    topologies: dict[str, LiveCounts]
    """By layer name; empty for a dense model."""

    is_tuning: bool = False
    """The trials of an arm before the test, all alike in cost."""


@dataclass(frozen=True)
class Subjects:
    """All that one command plans."""

    title: str
    subjects: tuple[Subject, ...]
    is_study: bool


class Counter:
    """Counts the live weights of configs, once for each; draws where nothing else tells them."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, LiveCounts]] = {}

    def topologies(self, config: RunConfig) -> dict[str, LiveCounts]:
        """Live weights by layer name; of a ticket that is not there yet, as many."""
        config = stand_in(config)
        parts = {"seed": config.seed, "tensor": config.parallel.tensor}
        key = f"{parts} {configs.to_dict(config.topology)} {config.shape}"
        if key not in self._known:
            self._known[key] = _stated_counts(config) or _drawn_counts(config)
        return self._known[key]

    def counts(self, config: RunConfig) -> ParameterCounts:
        """Parameters of the global model."""
        return ledger.count(config, vocabulary(config), self.topologies(config))

    def price(self, config: RunConfig, ds_path: Path) -> Price:
        """What engine/price.py says of a config, with the topologies drawn once only."""
        return price(config, ds_path, draw=self.topologies)


def _drawn_counts(config: RunConfig) -> dict[str, LiveCounts]:
    degrees = config.parallel.tensor > 1
    drawn = draw_topologies(config)
    return {name: LiveCounts.of(topology, degrees=degrees) for name, topology in drawn.items()}


def _stated_counts(config: RunConfig) -> dict[str, LiveCounts] | None:
    """er_fixed has as many live weights as its density says: no need to draw a billion cells.

    None where the count or its share over tensor-parallel ranks is known from a draw only, or a
    layer would be empty, which drawing reports.
    """
    topology = config.topology
    if topology.kind != "er_fixed" or topology.block or config.parallel.tensor > 1:
        return None
    shapes = layer_shapes(config.shape)
    densities = allocate(topology, shapes)
    counts = {
        s.name: LiveCounts(round(densities[s.name] * s.num_cells), None, None) for s in shapes
    }
    return counts if all(found.num_live for found in counts.values()) else None


def read_subjects(
    path: Path,
    *,
    ds_path: Path | None,
    base: Path | None = None,
    tensor: int | None = None,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
) -> Subjects:
    """Read a run config or a study file, which has arms or grids.

    Args:
        ds_path: DeepSpeed JSON; None = the study's, or ds_configs/zero1.json.
        base: one more run config, laid over the run config or over the base of the study.
        tensor: in place of parallel.tensor.

    Raises:
        UserError: one line.
    """
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file. Give a run config or a study file (YAML).")
    keys = {key.value for key, _ in configs.read_nodes(path).value}
    if tensor is not None:
        overrides = [*overrides, f"parallel.tensor={tensor}"]
    counter = Counter()
    if keys & {"arms", "grids"}:
        study = read_study(path, scale=scale, base=base, overrides=overrides, seeds=seeds)
        return _study(study, ds_path, counter)
    if scale is not None or seeds is not None:
        raise UserError(f"--scale and --seeds belong to a study; {path} is a run config")
    config = configs.load(RunConfig, [path] if base is None else [path, base], overrides)
    one = _subject(config.name, config, ds_path or default_ds_path(), 1, counter)
    return Subjects(config.name, (one,), False)


def default_ds_path() -> Path:
    """ds_configs/zero1.json of this checkout."""
    return beside(ZERO1, "the installation is not whole; give --ds_config FILE")


def _study(study: ScaledStudy, ds_path: Path | None, counter: Counter) -> Subjects:
    place = ds_path or study.ds_config
    study = replace(study, ds_config=place)
    plan, arms = build_plan.make_plan(
        study, lambda config: counter.price(config, place), threads=1, command=()
    )
    subjects = tuple(
        _subject(name, config, place, len(plan.runs_of(name)), counter)
        for name, config in arms.items()
    )
    subjects = (*_trials(study, counter), *subjects)
    return Subjects(f"{plan.name} ({plan.scale})", subjects, True)


def _trials(study: ScaledStudy, counter: Counter) -> list[Subject]:
    """One subject for each arm that is tuned: the trials of the grid as the study states it."""
    tune, place = study.config.tune, study.ds_config
    if tune is None:
        return []
    found = []
    for setting in study.settings:
        grid = points(own_grid(setting.config, tune.keys))
        config = trial_config(setting, tune, grid[0], setting.name)
        num_runs = len(grid) * len(tune.on.seeds)
        one = _subject(f"{setting.name}, tuning", config, place, num_runs, counter)
        found.append(replace(one, is_tuning=True))
    return found


def _subject(
    name: str, config: RunConfig, ds_path: Path, num_runs: int, counter: Counter
) -> Subject:
    topologies, counts = counter.topologies(config), counter.counts(config)
    return Subject(name, config, ds_path, num_runs, counts, topologies)
