"""Runs the study of a folder with fake_train.py, as launch/sweep.py does with the real one.

python fake_sweep.py STUDY_DIR
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sparsecl.experiments.running import runner  # noqa: E402
from sparsecl.experiments.running.local import LocalPlace  # noqa: E402
from sparsecl.experiments.running.runner import Runner, python_script  # noqa: E402
from sparsecl.experiments.study.study_plan import read_plan  # noqa: E402

runner.TICK = 0.02  # the runs are over in a moment


def make_runner(folder, *, slots=2, watch=lambda runner: None):
    place = LocalPlace(slots=slots, threads=1)
    train = python_script(Path(__file__).with_name("fake_train.py"))
    return Runner(folder, read_plan(folder), place, train=train, watch=watch)


if __name__ == "__main__":
    sys.exit(0 if make_runner(Path(sys.argv[1])).run() else 1)
