"""From a study file to the answer, in a planted world: all that launch/sweep.py does but train.

Runs are written by fake_train.py, in this process; test_sweep.py has processes of their own.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pytest

from sparsecl.experiments.findings.collect import Study, collect
from sparsecl.experiments.findings.compare import Comparison, Contrast, compare
from sparsecl.experiments.findings.frontier import FamilyContrast, families, family_contrasts
from sparsecl.experiments.findings.trends import Trends, trends
from sparsecl.experiments.findings.tuned import undecided
from sparsecl.experiments.report import tables, tuning
from sparsecl.experiments.report.sections import Material, sections
from sparsecl.experiments.report.table import Table, as_csv
from sparsecl.experiments.running import runner
from sparsecl.experiments.running.runner import Runner
from sparsecl.experiments.running.tuning import tune
from sparsecl.experiments.study.build_plan import make_plan, open_study
from sparsecl.experiments.study.study_file import read_study
from tests.experiments.fake_tuning import Cost, Ended
from tests.experiments.gallery import fake_train
from tests.experiments.gallery.worlds import NoEffect, live_weights

ROOT = Path(__file__).resolve().parents[3]
KEY = "optimizer.lr"

STUDY = """
name: gallery
ds_config: {ds}
base:
  model: {{preset: null, layers: 2, width: 64, heads: 4, mlp: 256, context: 16}}
  data:
    domains:
      - {{name: a, source: synthetic}}
      - {{name: b, source: synthetic}}
      - {{name: c, source: synthetic}}
  phases: {{steps: 5}}
  batch: {{sequences: 16}}
  eval: {{every: 2}}
  optimizer: {{lr: 2.0e-3}}
seeds: [{seeds}]
orders:
  forth: [{forth}]
  back: [{back}]
arms:
  dense: {{topology: {{kind: dense}}}}
  sparse: {{topology: {{density: 0.25}}}}
tune:
  keys: {{optimizer.lr: [{rates}]}}
  on: {{seeds: [{tuning_seeds}], order: [{order}]}}
"""

SEEDS = tuple(range(8))
TUNING_SEEDS = tuple(range(100, 108))
RATES = (0.5e-3, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3)
CONTROL = "controls: {equal_parameters: [sparse]}\n"


def study_file(
    folder: Path,
    more: str = "",
    *,
    cycles: int = 2,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
) -> Path:
    """Write the study; each order goes `cycles` times over the three domains."""
    text = STUDY.format(
        ds=ROOT / "ds_configs" / "zero2.json",
        seeds=_list(seeds),
        forth=_list("abc" * cycles),
        back=_list("cba" * cycles),
        rates=", ".join(f"{rate:.4e}" for rate in rates),
        tuning_seeds=_list(tuning_seeds),
        order=_list("bac" * cycles),
    )
    path = folder / "study.yaml"
    path.write_text(text + more)
    return path


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the pipeline makes of a world."""

    study: Study

    @cached_property
    def comparison(self) -> Comparison:
        return compare(self.study)

    @cached_property
    def trends(self) -> Trends:
        return trends(self.study)

    @cached_property
    def family_contrasts(self) -> list[FamilyContrast]:
        """As the table in the terminal has them, without all that a report needs."""
        return family_contrasts(self.study, families(self.study))

    @property
    def primary(self) -> Contrast:
        """Sparse minus dense, F_last, each at the rate that it got."""
        (found,) = self.comparison.family("primary")
        return found

    @property
    def control(self) -> Contrast:
        """Sparse minus the dense model of as many weights, F_last."""
        (found,) = (c for c in self.comparison.family("exploratory") if c.measure == "F_last")
        return found

    def over_rates(self, at: str) -> list[FamilyContrast]:
        """Sparse minus dense, F_last, made of the trials."""
        return [one for one in self.family_contrasts if one.at == at]

    @property
    def equal_loss(self) -> FamilyContrast:
        (found,) = self.over_rates("equal loss")
        return found

    @property
    def taken(self) -> dict[str, float]:
        """Arm -> rate that is frozen for the test."""
        assert self.study.plan.tuning is not None
        return {one.arm: one.taken[KEY] for one in self.study.plan.tuning.arms}

    @cached_property
    def page(self) -> str:
        """The text of the report, without figures."""
        material = Material(self.study, self.comparison, self.trends, {})
        return "".join(section.body for section in sections(material))

    @cached_property
    def seeds(self) -> list[dict[str, str]]:
        """Rows of seeds.csv."""
        return rows(tables.seeds_table(self.study))

    @cached_property
    def trials(self) -> list[dict[str, str]]:
        """Rows of trials.csv."""
        assert self.study.plan.tuning is not None
        found = tuning.trials_table(self.study.plan.tuning, self.trends.trials)
        assert found is not None
        return rows(found)


def rows(table: Table) -> list[dict[str, str]]:
    """A table as the report writes it."""
    return list(csv.DictReader(io.StringIO(as_csv(table))))


def read_world(world: NoEffect, folder: Path, more: str = "", **changes) -> Reading:
    """Tune, test, collect, compare."""
    sweep(world, study_file(folder, more, **changes), folder / "study")
    return Reading(study=collect(folder / "study"))


def untuned(world: NoEffect, folder: Path) -> Reading:
    """The same study at one rate for all arms."""
    path = study_file(folder)
    path.write_text(path.read_text().partition("tune:")[0])
    sweep(world, path, folder / "study")
    return Reading(study=collect(folder / "study"))


def sweep(world: NoEffect, path: Path, folder: Path) -> None:
    """As sparsecl/programs/sweep.py: trials, frozen values, test."""
    study = read_study(path)
    command = ["sweep", path.name]
    folder.mkdir()

    def run(place, plan):
        train = ["python", "train.py"]
        assert Runner(place, plan, Here(world), train=train, watch=lambda _: None).run()

    def work(place, trials, _):
        run(place, replace(trials, runs=tuple(undecided(place, trials))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "TICK", 0.0)
        found = None
        if study.config.tune is not None:
            plan, _ = make_plan(study, price, threads=1, command=command)
            found = tune(folder, study, plan, price, command=command, work=work)
            assert found is not None
        plan, configs = make_plan(study, price, threads=1, command=command, tuning=found)
        run(folder, open_study(folder, plan, configs))


class Here:
    """Runs the fake training in this process."""

    slots = 1

    def __init__(self, world):
        self.world = world

    def start(self, command, *, log, slot):
        return Ended(fake_train.train(self.world, command[2:]))


def price(config):
    """Of a fake model."""
    model = config.model.resolved()
    density = 1.0 if config.topology.kind == "dense" else config.topology.density
    shape = {"layers": model.layers, "width": model.width, "mlp": model.mlp}
    live = live_weights(**shape, density=density)
    steps = config.phases.steps * len(config.phases.order or config.data.domains)
    return Cost(
        live=live,
        total=live_weights(**shape, density=1.0),
        density=density,
        flops_per_token=6 * live,
        steps=steps,
        tokens=steps * config.batch.sequences * model.context,
    )


def _list(items) -> str:
    return ", ".join(map(str, items))
