"""How the time of a step grows: against live weights, tokens and layers, one at a time.

For each axis and arm, models of three or more sizes take turns, and a line is fitted to the
logarithms of the medians: time ~ x^k. k = 1 is linear; a constant part, such as the dense embedding
beside the layers, makes it smaller.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tools.benchmarks import process
from tools.benchmarks.arms import BASELINE, arm_configs, model_config
from tools.benchmarks.ratios import log_slope, medians
from tools.benchmarks.steps import Timed

DENSITIES = (0.05, 0.1, 0.2, 0.4)
FACTORS = (1, 2, 4)
AXES = ("live_weights", "tokens", "layers")
TIMES = ("step", "update")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all points. The baseline has no axis of live weights."""
    from sparsecl import dist

    machine = process.start(options)
    dist.init()
    names = [BASELINE, *options.arms]
    lines = [
        _line(options, axis, name)
        for axis in AXES
        for name in names
        if axis != "live_weights" or name != BASELINE
    ]
    dist.shutdown()
    machine["load_average_after"] = os.getloadavg()[0]
    return {"environment": machine, "lines": lines}


def points(options: argparse.Namespace, axis: str) -> list[dict[str, Any]]:
    """Arguments of `arm_configs` for the points of an axis."""
    first = options.density[0]
    if axis == "live_weights":
        given = options.density if len(options.density) >= 3 else DENSITIES
        return [{"density": density} for density in sorted(given)]
    if axis == "tokens":
        return [{"density": first, "sequences": options.sequences * k} for k in FACTORS]
    layers = model_config(options).resolved().layers
    return [{"density": first, "layers": layers * k} for k in FACTORS]


def _line(options: argparse.Namespace, axis: str, arm: str) -> dict[str, Any]:
    """One axis of one arm: its points side by side."""
    trials: dict[str, Timed] = {}
    sizes: dict[str, int] = {}
    for number, settings in enumerate(points(options, axis)):
        config = arm_configs(options, **settings)[arm]
        prepared, backends, _ = process.prepare(config, options.ds_config)
        trial = Timed(prepared, options.vocab, backends)
        trials[str(number)], sizes[str(number)] = trial, _size(trial, axis)

    def step(name: str, index: int, counts: bool) -> None:
        plan = trials[name].plan
        shape = (trials[name].config.batch.sequences, plan.shape.context)
        trials[name].step(process.random_rows(options, index, shape), keep=counts)

    process.take_turns(
        list(trials),
        step,
        warmup=options.warmup,
        rounds=options.rounds,
        label=f"{axis}, {arm}",
    )
    seconds = [trial.seconds for trial in trials.values()]
    for trial in trials.values():
        trial.close()
    return {"axis": axis, "arm": arm, **fit(list(sizes.values()), [medians(s) for s in seconds])}


def fit(sizes: Sequence[int], times: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Slopes of step and update over the sizes, with the points."""
    return {
        "sizes": list(sizes),
        "median_seconds": list(times),
        "slopes": {
            name: asdict(log_slope(sizes, [point[name] for point in times])) for name in TIMES
        },
    }


def _size(trial: Timed, axis: str) -> int:
    """Where a point lies on its axis. Live weights: all that the optimizer steps and that live."""
    if axis == "tokens":
        return trial.plan.tokens_per_step
    if axis == "layers":
        return trial.plan.shape.layers
    from sparsecl.model.flops import count_parameters

    built = trial.built
    return count_parameters(trial.plan.shape, built.model.vocab_size, built.topologies).live
