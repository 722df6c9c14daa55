"""Bytes of a checkpoint, and how long training waits for one, against density.

A foreground save is one stall: gathering what is saved, writing it, giving it its name. In the
background the stall is the copy, and the wait at the next save for what is not yet published; steps
are taken meanwhile, and since the writer takes cores and memory from them, their time is compared
with that of a step right before the save. Both ways take turns within an arm. Files go into a
temporary folder (TMPDIR chooses the disk) and hold what a run without methods holds, less the few
kilobytes of its config and position.

How much of a run the stalls are depends on how often it saves. The interval here is Young's,
sqrt(2 * MTTF * save), which balances saving against work that a failure loses; the bound of the
share is that of CheckFreq (Mohan et al., FAST 2021). Both ways are judged at the same interval,
that of the foreground's save.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsecl.benchmarks import process
from sparsecl.benchmarks.arms import BASELINE, FULL_ARMS
from sparsecl.benchmarks.steps import Timed
from sparsecl.engine.run_config import RunConfig

if TYPE_CHECKING:
    from sparsecl.checkpoint.background import Saver
    from sparsecl.engine.run import Prepared

WAYS = ("foreground", "background")

MTTF_SECONDS = 24 * 3600.0
"""Mean time to failure: an assumption. 1,024 GPUs see 7.9 hours (arXiv 2410.21680), which makes a
day of some 300 if failures come with GPUs alone."""

STALL_BOUND = 0.035  # CheckFreq's bound of the overhead


def measure(
    options: argparse.Namespace, groups: Mapping[float, Mapping[str, RunConfig]]
) -> dict[str, Any]:
    """Build and measure one arm after the other; those that no density changes, once.

    Raises:
        StorageError: if the disk of temporary files is too small.
    """
    from sparsecl import dist

    machine, prepared = process.start(options, groups)
    dist.init()
    rows: list[dict[str, Any]] = []
    for group, runs in prepared.items():
        for name, run in runs.items():
            full = name == BASELINE or name in FULL_ARMS
            if full and any(row["arm"] == name for row in rows):
                continue
            density = 1.0 if full else group
            rows.append({"density": density, "arm": name, **measure_arm(options, density, run)})
    dist.shutdown()
    for row in rows:
        row["bytes_to_dense"] = row["bytes"] / rows[0]["bytes"]
    assumed = {"mttf_seconds": MTTF_SECONDS, "stall_bound": STALL_BOUND}
    return {"environment": process.finish(machine), **assumed, "rows": rows}


def measure_arm(
    options: argparse.Namespace, density: float, prepared: "Prepared"
) -> dict[str, Any]:
    """Build one model, take a step so that moments exist, save it both ways, and drop it."""
    arm = Timed(prepared, options.vocab, process.backends_of(prepared)[0])
    with tempfile.TemporaryDirectory() as folder:
        saves = Saves(arm, options, Path(folder) / "checkpoints")
        saves.step()
        process.take_turns(
            WAYS,
            saves.run,
            warmup=options.warmup,
            rounds=options.rounds,
            label=f"density {density:g}, {prepared.config.name}",
        )
        found = saves.content()
    arm.close()
    topology = prepared.config.topology
    return {
        "storage": "dense" if topology.kind == "dense" else topology.storage,
        **found,
        "seconds": saves.seconds,
        **figures(saves.seconds),
    }


def figures(seconds: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """Median and quartiles of the times, and the stall's share of training.

    Args:
        seconds: by way: `stall`, `write`, `step` (quiet, before each save), and of the background
            `steps`, a list for each save.
    """
    front, back = (seconds[way] for way in WAYS)
    save = quartiles(front["write"])["median"]
    step = quartiles([*front["step"], *back["step"]])
    interval = young_interval(save, MTTF_SECONDS)
    stalls = {way: quartiles(seconds[way]["stall"]) for way in WAYS}
    beside = [
        float(np.mean(steps)) / quiet
        for steps, quiet in zip(back["steps"], back["step"], strict=True)
    ]
    return {
        "save": {way: quartiles(seconds[way]["write"]) for way in WAYS},
        "stall": stalls,
        "step": step,
        "step_while_writing": quartiles(beside),
        "interval_seconds": interval,
        "interval_steps": interval / step["median"],
        "share": {way: stall["median"] / interval for way, stall in stalls.items()},
    }


def young_interval(save: float, mttf: float) -> float:
    """Seconds of training between saves that lose the least time (Young 1974, first order).

    Args:
        save: seconds of one save.
        mttf: mean time to failure, seconds; much longer than `save`.
    """
    return math.sqrt(2 * mttf * save)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, first and third quartile."""
    q1, median, q3 = (float(value) for value in np.percentile(values, (25, 50, 75)))
    return {"median": median, "q1": q1, "q3": q3}


class Saves:
    """The saves of one arm, and the steps around them."""

    def __init__(self, arm: Timed, options: argparse.Namespace, root: Path) -> None:
        """Args:
        root: the `checkpoints` folder, not there yet.
        """
        from sparsecl.checkpoint.background import Saver

        self.arm, self.options = arm, options
        keep = arm.config.checkpoint.keep
        self.savers = {way: Saver(root, keep=keep, background=way == "background") for way in WAYS}
        self.num_steps = 0
        self.seconds: dict[str, dict[str, list[Any]]] = {
            way: {name: [] for name in ("stall", "write", "step")} for way in WAYS
        }
        self.seconds["background"]["steps"] = []
        self._newest: Path | None = None

    def step(self) -> float:
        """Train one step; its seconds."""
        shape = (self.options.sequences, self.arm.schedule.shape.context)
        rows = process.random_rows(self.options, self.num_steps, shape)
        self.arm.step(rows, keep=True)
        self.num_steps += 1
        return self.arm.seconds["step"][-1]

    def run(self, way: str, index: int, counts: bool) -> None:
        """One quiet step and one save, with steps beside it in the background."""
        from sparsecl.engine.resume import state
        from sparsecl.methods.several import Methods

        saver = self.savers[way]
        found: dict[str, Any] = {"step": self.step()}
        began = time.perf_counter()
        state.save(saver, self.arm.built, Methods([]), {}, {}, step=self.num_steps)
        found["stall"] = time.perf_counter() - began
        if way == "background":
            found["steps"] = self._steps_beside(saver)
            began = time.perf_counter()
            saver.wait()  # what the next save begins with
            found["stall"] += time.perf_counter() - began
        assert saver.last is not None
        self._newest = saver.last.folder
        found["write"] = saver.last.write_seconds
        if counts:
            for name, value in found.items():
                self.seconds[way][name].append(value)

    def content(self) -> dict[str, Any]:
        """Bytes of the newest checkpoint and of its live sets, and the weights that it holds."""
        from sparsecl.checkpoint.manifest import read_manifest
        from sparsecl.checkpoint.topologies import TOPOLOGY_FILE
        from sparsecl.engine.resume.state import MASTER

        assert self._newest is not None
        sizes = {path.name: path.stat().st_size for path in self._newest.iterdir()}
        pieces = read_manifest(self._newest).pieces
        return {
            "live_parameters": sum(piece.numel for piece in pieces if piece.state == MASTER),
            "bytes": sum(sizes.values()),
            "topology_bytes": sizes.get(TOPOLOGY_FILE, 0),
        }

    def _steps_beside(self, saver: "Saver") -> list[float]:
        """Train until the writer is done, one step at least; seconds of the steps.

        The last of them may outlast the writer.
        """
        writer = saver._running  # `Saver` tells nobody; to wait for it would be the stall
        found = [self.step()]
        while writer is not None and writer.is_alive():
            found.append(self.step())
        return found
