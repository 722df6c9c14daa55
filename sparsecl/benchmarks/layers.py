"""The linears alone: forward and backward, without attention, norms, head and optimizer.

Every distinct shape of a block is timed by itself, and so is the block: its six linears with a GELU
between `up` and `down`, and nothing else. A round is all micro-batches of one step, so a matrix
that is kept over them (packed_keep) is expanded once in a round.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsecl.benchmarks import process
from sparsecl.benchmarks.arms import BASELINE
from sparsecl.benchmarks.ratios import summary
from sparsecl.engine.run_config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

    from sparsecl.engine.run import Prepared
    from sparsecl.sparse.linear import SparseLinear

# One linear for each distinct shape of a block, and how often the shape occurs in it.
SHAPES = {"attention": ("o", 4), "up": ("up", 1), "down": ("down", 1)}
BLOCK = "block"


def measure(
    options: argparse.Namespace, groups: Mapping[float, Mapping[str, RunConfig]]
) -> dict[str, Any]:
    """Time the linears of every arm, density by density; a group holds its arms' layers only."""
    machine, prepared = process.start(options, groups)
    results = [time_group(options, density, runs) for density, runs in prepared.items()]
    return {"environment": process.finish(machine), "groups": results}


def time_group(
    options: argparse.Namespace, density: float, runs: "Mapping[str, Prepared]"
) -> dict[str, Any]:
    """All arms of one density: shapes, their sum over a block, and the block."""
    arms = {name: LayerArm(run) for name, run in runs.items()}
    tokens = arms[BASELINE].schedule.tokens_per_step
    units = {
        unit: _time(options, arms, unit, f"density {density:g}, {unit}")
        for unit in (*SHAPES, BLOCK)
    }
    return {
        "density": density,
        "tokens_per_step": tokens,
        "units": units,
        "sums": {name: _sum(units, name) for name in arms},
        "choices": {name: arm.choices for name, arm in arms.items()},
    }


def _time(
    options: argparse.Namespace, arms: Mapping[str, "LayerArm"], unit: str, label: str
) -> dict[str, Any]:
    """One shape, or the block, in all arms."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}

    def run(name: str, index: int, counts: bool) -> None:
        elapsed = arms[name].run(unit)
        if counts:
            seconds[name].append(elapsed)

    process.take_turns(list(arms), run, warmup=options.warmup, rounds=options.rounds, label=label)
    for arm in arms.values():
        arm.forget_inputs()
    tokens = arms[BASELINE].schedule.tokens_per_step
    return {
        name: {"seconds": times, **summary({"step": times}, {"step": seconds[BASELINE]}, tokens)}
        for name, times in seconds.items()
    }


def _sum(units: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The six linears of a block from its shapes, times their number, round by round."""
    found: dict[str, list[float]] = {}
    for arm in (name, BASELINE):
        rounds = zip(*(units[unit][arm]["seconds"] for unit in SHAPES), strict=True)
        weights = [count for _, count in SHAPES.values()]
        found[arm] = [sum(w * t for w, t in zip(weights, times, strict=True)) for times in rounds]
    totals = {"step": found[name]}
    figures = summary(totals, {"step": found[BASELINE]}, 1)
    return {"seconds": figures["median_seconds"]["step"], "ratio": figures["ratio"]}


class LayerArm:
    """The linears of one block in one arm."""

    def __init__(self, prepared: "Prepared") -> None:
        """Build and fill block 0."""
        from sparsecl import dist
        from sparsecl.engine.topology import DTYPES
        from sparsecl.model.build import linear_options
        from sparsecl.model.gpt import block_linears
        from sparsecl.model.init import fill_linear

        chosen, self.choices = process.backends_of(prepared)
        self.schedule, config, topologies = prepared.schedule, prepared.config, prepared.topologies
        settings = {name: linear_options(config.topology, name, chosen) for name in topologies}
        self.linears: dict[str, SparseLinear] = block_linears(
            prepared.schedule.shape, 0, topologies, settings
        )
        self.dtype, self.device = DTYPES[config.precision], dist.device()
        for linear in self.linears.values():
            fill_linear(linear, seed=0, std=config.model.init_std, corrected=True)
            linear.to(self.device, self.dtype)
        self._inputs: dict[str, tuple[Tensor, Sequence[Tensor]]] = {}

    def run(self, unit: str) -> float:
        """Seconds of forward and backward of all micro-batches of a step."""
        import torch

        linears = [SHAPES[unit][0]] if unit in SHAPES else list(self.linears)
        weights = [self.linears[kind].weight for kind in linears]
        x, gradients = self._batch(unit)
        forward = self._block if unit == BLOCK else self.linears[linears[0]]
        watch = process.Stopwatch()
        for linear in self.linears.values():
            linear.forget()  # as after a step of the optimizer
        for _ in range(self.schedule.accumulation):
            y = forward(x)
            outputs = y if isinstance(y, tuple) else (y,)
            torch.autograd.grad(outputs, (x, *weights), gradients)
        return watch.stop()["step"]

    def forget_inputs(self) -> None:
        """Free what belongs to the unit that was timed last."""
        self._inputs.clear()

    def _block(self, x: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        """The six linears as the model chains them; q and k end here, for want of attention."""
        import torch.nn.functional as F

        linears = self.linears
        arranged = linears["q"].arrange(x)
        q, k, v = (linears[kind](arranged) for kind in ("q", "k", "v"))
        return q, k, linears["down"](F.gelu(linears["up"](linears["o"](v))))

    def _batch(self, unit: str) -> "tuple[Tensor, Sequence[Tensor]]":
        """Input and output gradients of a micro-batch, made once for a unit."""
        if unit in self._inputs:
            return self._inputs[unit]
        import torch

        shape = self.schedule.shape
        width = shape.mlp if unit == "down" else shape.width
        outputs = [shape.mlp if unit == "up" else shape.width] * (3 if unit == BLOCK else 1)
        x, *gradients = (
            torch.randn(
                self.schedule.micro, shape.context, size, device=self.device, dtype=self.dtype
            )
            for size in (width, *outputs)
        )
        self._inputs[unit] = (x.requires_grad_(), gradients)
        return self._inputs[unit]
