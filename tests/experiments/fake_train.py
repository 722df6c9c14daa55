"""Stands in for launch/train.py: writes the records of a run bit by bit, and goes on after a kill.

    python fake_train.py --ds_config X --config Y --run_dir DIR --set seed=0 name=arm-seed0

What it writes depends on the arm and the seed alone. An arm named "bad..." fails after two steps,
one named "preempted..." asks to be started again after every third line, "stuck..." at once.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.metrics.fake_run import from_matrix  # noqa: E402

STEP_SECONDS = 0.04


def records(arm, seed, until_loss):
    rise = {"dense": 0.5, "sparse": 0.2}.get(arm, 0.3) + 0.01 * seed
    first = 2.0 + 0.1 * seed if until_loss is None else until_loss
    loss = [[4.0, 4.0], [first, 3.9], [first + rise, 1.5]]
    end = {"kind": "end", "seconds": 1.0, "tokens_per_second": 1.0}
    return [*from_matrix(loss, ["a", "b"], [0, 1]), end]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--ds_config")
    parser.add_argument("--config")
    parser.add_argument("--run_dir", type=Path)
    parser.add_argument("--set", nargs="+")
    options = parser.parse_args()
    settings = dict(text.split("=", 1) for text in options.set)
    arm, seed = settings["name"].rsplit("-seed", 1)
    until = settings.get("phases.until_loss")
    options.run_dir.mkdir(parents=True, exist_ok=True)
    file = options.run_dir / "scalars.jsonl"
    done = len(file.read_bytes().splitlines()) if file.exists() else 0
    if arm.startswith("stuck"):
        return 75
    for number, record in enumerate(records(arm, int(seed), float(until) if until else None)):
        if number < done:
            continue
        if arm.startswith("bad") and number == 2:
            print("some noise\nsparsecl: step 2: the loss is nan\n", file=sys.stderr)
            return 70
        with open(file, "ab") as out:
            out.write(json.dumps(record).encode() + b"\n")
        time.sleep(STEP_SECONDS)
        if arm.startswith("preempted") and number % 3 == 2:
            return 75
    (options.run_dir / "results.json").write_text("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
