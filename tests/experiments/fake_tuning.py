"""Tunes a study and runs its test with fake_train.py, as launch/sweep.py does with the real one.

python fake_tuning.py STUDY_FILE STUDY_DIR
"""

import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sparsecl.experiments.findings.tuned import undecided  # noqa: E402
from sparsecl.experiments.running import runner  # noqa: E402
from sparsecl.experiments.running.local import LocalPlace  # noqa: E402
from sparsecl.experiments.running.runner import Runner, python_script  # noqa: E402
from sparsecl.experiments.running.tuning import tune  # noqa: E402
from sparsecl.experiments.study.build_plan import make_plan, open_study  # noqa: E402
from sparsecl.experiments.study.study_file import read_study  # noqa: E402
from tests.experiments import fake_train  # noqa: E402

runner.TICK = 0.001

STUDY = """
name: tuned
ds_config: {ds}
base:
  model: {{preset: null, layers: 2, width: 32, heads: 4, context: 16}}
  data:
    domains:
      - {{name: a, source: synthetic}}
      - {{name: b, source: synthetic}}
  phases: {{steps: 5}}
  eval: {{every: 2}}
  optimizer: {{lr: 4.0e-3}}
seeds: [0, 1]
arms:
  dense: {{topology: {{kind: dense}}}}
  sparse: {{topology: {{density: 0.25}}}}
tune:
  keys: {{optimizer.lr: [1.0e-3, 2.0e-3, 4.0e-3, 8.0e-3, 16.0e-3]}}
  on: {{seeds: [7, 8, 9], order: [b, a]}}
"""
"""Its arms have their optimum inside of the grid; BEST in fake_train.py."""

GRID = "optimizer.lr: [1.0e-3, 2.0e-3, 4.0e-3, 8.0e-3, 16.0e-3]"
RISING = "optimizer.lr: [1.0e-3, 2.0e-3, 4.0e-3]"
"""Keys of the study, and others whose end is the best of the sparse arm."""

STRENGTHS = f"{RISING}, methods.ewc.strength: [1.0, 10.0]"
EWC = ("tune:\n", "  ewc: {methods: {ewc: {strength: 10.0}}}\ntune:\n")
"""A key that one arm has, and what gives the study that arm."""


@dataclass(frozen=True)
class Cost:
    live: int = 1000
    total: int = 1000
    density: float = 1.0
    flops_per_token: int = 6000
    gradient_flops: int = 0
    score_flops: int = 0
    flops: int = 12_000_000
    steps: int = 200
    tokens: int = 2000


def study_file(folder, more="", *changes):
    """Write the study, with texts replaced and more at its end; returns the file."""
    text = STUDY.format(ds=ROOT / "ds_configs" / "zero2.json")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "study.yaml"
    path.write_text(text + more)
    return path


def price(config):
    return Cost(density=1.0 if config.topology.kind == "dense" else config.topology.density)


class Ended:
    """A process that has ended with this code."""

    def __init__(self, code):
        self.poll = lambda: code
        self.stop = lambda: None


class Here:
    """Runs the fake training in this process: the import of numpy takes most of a fake run."""

    slots = 1

    def start(self, command, *, log, slot):
        with open(log, "a") as file, contextlib.redirect_stderr(file):
            return Ended(fake_train.main(command[2:]))


def run(folder, plan, place=None):
    train = python_script(Path(__file__).with_name("fake_train.py"))
    place = place or Here()
    return Runner(folder, plan, place, train=train, watch=lambda runner: None).run()


def planned(path, tuning=None, **options):
    study = read_study(path, **options)
    made = make_plan(study, price, threads=1, command=["sweep", "a b"], tuning=tuning)
    return study, *made


def tune_only(path, folder, log=None, place=None, **options):
    """The tuning, or None; `log` gets (folder, runs) of each call for work."""
    study, plan, _ = planned(path, **options)

    def work(at, trials, configs):
        left = replace(trials, runs=tuple(undecided(at, trials)))
        if log is not None:
            log.append((at.name, [run.name for run in left.runs]))
        run(at, left, place)

    folder.mkdir(exist_ok=True)
    return tune(folder, study, plan, price, command=["sweep", "a b"], work=work)


def sweep(path, folder, log=None, place=None, **options):
    """All of it; False if a run has failed."""
    tuning = tune_only(path, folder, log, place, **options)
    if tuning is None:
        return False
    _, plan, configs = planned(path, tuning, **options)
    return run(folder, open_study(folder, plan, configs), place)


if __name__ == "__main__":
    here = LocalPlace(slots=2, threads=1)
    sys.exit(0 if sweep(Path(sys.argv[1]), Path(sys.argv[2]), place=here) else 1)
