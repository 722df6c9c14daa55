"""Stands in for launch/train.py in a planted world: writes the records that the world wants.

main(WORLD, MASTER, ["--ds_config", X, "--config", Y, "--run_dir", DIR, "--set", "seed=0", ...])

Beside the records it writes given.json: the seed, the order and the rate that it was given.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.experiments.fake_train import given
from tests.experiments.gallery.worlds import DOMAINS, WORLDS, NoEffect, Run, live_weights
from tests.metrics.fake_run import from_matrix

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def main(world: str, master: int, arguments: Sequence[str] | None = None) -> int:
    """One run as a process of its own."""
    return train(WORLDS[world](master), arguments)


def train(world: NoEffect, arguments: Sequence[str] | None) -> int:
    """Write one run; returns its exit code."""
    options, settings = given(arguments)
    config = read_config(options.config)
    run = run_of(config, settings, options.config.stem)
    records = from_matrix(world.losses(run), DOMAINS, [DOMAINS.index(name) for name in run.order])
    records[0]["digests"] = {"data": f"data{run.seed}", "tokenizer": "tok"}
    records.append({"kind": "end", "seconds": 1.0, "tokens_per_second": 1.0})
    folder = options.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    asked = {"seed": run.seed, "order": run.order, "rate": run.rate, "set": options.set}
    (folder / "given.json").write_text(json.dumps(asked))
    (folder / "scalars.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    (folder / "results.json").write_text("{}")
    return 0


def run_of(config: dict[str, Any], settings: dict[str, str], arm: str) -> Run:
    """What the options of launch/train.py say, over the config of the arm."""
    order = settings.get("phases.order", "").strip("[]").split(", ")
    order = tuple(name for name in order if name) or tuple(config["phases"]["order"])
    dense = config["topology"]["kind"] == "dense"
    density = 1.0 if dense else config["topology"]["density"]
    model = {name: config["model"][name] for name in ("layers", "width", "mlp")}
    steps = config["phases"]["steps"] * len(order)
    tokens = steps * config["batch"]["sequences"] * config["model"]["context"]
    return Run(
        arm=arm,
        seed=int(settings["seed"]),
        order=order,
        rate=config["optimizer"]["lr"],
        density=density,
        tokens_per_weight=tokens / live_weights(**model, density=density),
    )


@cache
def read_config(path: Path) -> dict[str, Any]:
    """A run config as it stands."""
    return yaml.load(path.read_text(), LOADER)
