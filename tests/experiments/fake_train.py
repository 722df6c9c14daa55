"""Stands in for launch/train.py: writes the records of a run bit by bit, and goes on after a kill.

    python fake_train.py --ds_config X --config Y --run_dir DIR --set seed=0 name=arm-seed0

What it writes depends on the arm and the seed alone. An arm named "bad..." fails after two steps,
one named "preempted..." asks to be started again after every third line, "stuck..." at once, and
"killed..." is killed under its progress bar.

Where its config is there (fake_tuning.py writes it), the losses at the end follow from the learning
rate, with an optimum for each density, and it writes what it was given into given.json.

A linked run (study/chain.py) finds what it takes in a finished run, and writes ticket.json: what
every run before it has found, so that two studies can be compared.

With FAKE_HOLD=N:FIFO it writes N lines at most, then one byte into the FIFO, and waits until it is
ended. It has the FIFO open all the time: who reads it sees its end when all runs are gone.
"""

import argparse
import json
import math
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.metrics.fake_run import from_matrix  # noqa: E402

BEST = {1.0: 2e-3, 0.25: 8e-3, 0.1: 64e-3, 0.5: 4e-3}
"""Density -> the rate of the lowest loss; a density of 0.5 diverges above it."""


def planted(config, seed):
    """Loss at the end; None if it diverges."""
    density, rate = config["topology"]["density"], config["optimizer"]["lr"]
    if config["topology"]["kind"] == "dense":
        density = 1.0
    if density == 0.5 and rate > BEST[density]:
        return None
    wiggle = 0.002 * math.sin(1e3 * rate + seed)  # of this seed and rate alone
    return 3.0 + 0.1 * seed % 0.7 + 0.05 * math.log2(rate / BEST[density]) ** 2 + wiggle


def records(arm, seed, until, last=None):
    rise = {"dense": 0.5, "sparse": 0.2}.get(arm, 0.3) + 0.01 * seed
    first, second = until or (2.0 + 0.1 * seed, 1.5)
    loss = [[4.0, 4.0], [first, 3.9], [first + rise, second] if last is None else [last, last]]
    end = {"kind": "end", "seconds": 1.0, "tokens_per_second": 1.0}
    return [*from_matrix(loss, ["a", "b"], [0, 1]), end]


def given(arguments=None):
    """The options of launch/train.py that a study gives, and what stands under --set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ds_config")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--run_dir", type=Path)
    parser.add_argument("--set", nargs="+")
    options = parser.parse_args(arguments)
    return options, dict(text.split("=", 1) for text in options.set)


def main(arguments=None):
    options, settings = given(arguments)
    arm, seed = settings["name"].rsplit("-seed", 1)
    until = settings.get("phases.until_loss")
    last = None
    write_ticket(options.run_dir, arm, seed, settings)
    if options.config and options.config.is_file():
        import yaml

        config = yaml.safe_load(options.config.read_text())
        last = planted(config, int(seed))
        options.run_dir.mkdir(parents=True, exist_ok=True)
        asked = {"seed": int(seed), "config": config}
        (options.run_dir / "given.json").write_text(json.dumps(asked))
        if last is None:
            print("sparsecl: step 2: 5 steps had a gradient that is not finite", file=sys.stderr)
            return 70
    return write(options.run_dir, arm, int(seed), json.loads(until) if until else None, last)


def write_ticket(folder, arm, seed, settings):
    """Name of the run, and what it takes from whom, with all that those have taken."""
    found = {"run": f"{arm}/{seed}"}
    for key in ("topology.path", "topology.ticket.since", "init_from"):
        if key in settings:
            place = Path(json.loads(settings[key]))
            run, _, step = str(place).partition("/kept/" if "/kept/" in str(place) else "/initial/")
            assert (Path(run) / "results.json").exists(), f"{run} is not done"
            found[key] = [step, json.loads((Path(run) / "ticket.json").read_text())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ticket.json").write_text(json.dumps(found))


def write(folder, arm, seed, until=None, last=None):
    """All that a run writes from here on; its exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scalars.jsonl"
    done = len(file.read_bytes().splitlines()) if file.exists() else 0
    if arm.startswith("stuck"):
        return 75
    num_lines, _, fifo = os.environ.get("FAKE_HOLD", "").partition(":")
    held = os.open(fifo, os.O_WRONLY) if fifo else None
    for number, record in enumerate(records(arm, seed, until, last)):
        if number < done:
            continue
        if arm.startswith("bad") and number == 2:
            print("some noise\nsparsecl: step 2: the loss is nan\n", file=sys.stderr)
            return 70
        if arm.startswith("killed"):
            print("\rphase 0 a:  50%|##### | 1/2 [00:01<00:01]", end="", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        with open(file, "ab") as out:
            out.write(json.dumps(record).encode() + b"\n")
        if held is not None and number + 1 == done + int(num_lines):
            os.write(held, b"x")
            signal.pause()
        if arm.startswith("preempted") and number % 3 == 2:
            return 75
    (folder / "results.json").write_text("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
