"""How the time of a step grows: against live weights, tokens and layers, one at a time.

For each axis and arm, models of three or more sizes take turns, and a line is fitted to the
logarithms of the medians: time ~ x^k. k = 1 is linear; a constant part, such as the dense embedding
beside the layers, makes it smaller.

Beside the lines: the memory of a dense step with whole logits, and with the loss in chunks.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from sparsecl.benchmarks import memory, process
from sparsecl.benchmarks.arms import BASELINE, arm_configs, model_config
from sparsecl.benchmarks.ratios import log_slope, medians
from sparsecl.benchmarks.steps import Timed
from sparsecl.engine.run_config import RunConfig
from sparsecl.model.config import LOSS_CHUNK

if TYPE_CHECKING:
    from sparsecl.engine.run import Prepared

DENSITIES = (0.05, 0.1, 0.2, 0.4)
FACTORS = (1, 2, 4)
AXES = ("live_weights", "tokens", "layers")
TIMES = ("step", "update")
CHUNKS = (0, LOSS_CHUNK)
"""Tokens whose logits exist at once; 0 = all."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all points, and weigh the steps. The baseline has no axis of live weights."""
    from sparsecl import dist

    groups: dict[Any, dict[str, RunConfig]] = {
        (axis, name): line_configs(options, axis, name)
        for axis in AXES
        for name in (BASELINE, *options.arms)
        if axis != "live_weights" or name != BASELINE
    }
    groups["memory"] = chunk_configs(options)
    machine, prepared = process.start(options, groups)
    dist.init()
    weighed = prepared.pop("memory")
    lines = [time_line(options, axis, name, runs) for (axis, name), runs in prepared.items()]
    rows = [weigh(options, run) for run in weighed.values()]
    dist.shutdown()
    return {"environment": process.finish(machine), "lines": lines, "memory": rows}


def chunk_configs(options: argparse.Namespace) -> dict[str, RunConfig]:
    """The dense run with each of CHUNKS."""
    dense = arm_configs(options, options.density[0])[BASELINE]
    return {str(n): replace(dense, speed=replace(dense.speed, loss_chunk=n)) for n in CHUNKS}


def weigh(options: argparse.Namespace, run: "Prepared") -> dict[str, Any]:
    """Bytes of model state and of one pass over a micro-batch. `dist.init` has run."""
    found = memory.measure_arm(run, options.vocab, None)
    kinds = ("measured", "formula")
    return {
        "loss_chunk": run.config.speed.loss_chunk,
        "tokens": run.schedule.micro * run.schedule.shape.context,
        **{kind: {name: found[kind][name] for name in ("state", "pass")} for kind in kinds},
    }


def line_configs(options: argparse.Namespace, axis: str, arm: str) -> dict[str, RunConfig]:
    """The runs of one arm along one axis, numbered."""
    return {
        str(number): arm_configs(options, **settings)[arm]
        for number, settings in enumerate(points(options, axis))
    }


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


def time_line(
    options: argparse.Namespace, axis: str, arm: str, runs: "Mapping[str, Prepared]"
) -> dict[str, Any]:
    """One axis of one arm: its points side by side. `dist.init` has run."""
    trials = {
        name: Timed(run, options.vocab, process.backends_of(run)[0]) for name, run in runs.items()
    }
    sizes = [_size(trial, axis) for trial in trials.values()]

    def step(name: str, index: int, counts: bool) -> None:
        schedule = trials[name].schedule
        shape = (trials[name].config.batch.sequences, schedule.shape.context)
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
    return {"axis": axis, "arm": arm, **fit(sizes, [medians(s) for s in seconds])}


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
        return trial.schedule.tokens_per_step
    if axis == "layers":
        return trial.schedule.shape.layers
    from sparsecl.model.flops import count_parameters

    built = trial.built
    return count_parameters(trial.schedule.shape, built.model.vocab_size, built.topologies).live
