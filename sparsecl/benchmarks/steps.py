"""Whole training steps: forward, backward and optimizer step through DeepSpeed."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsecl.benchmarks import process
from sparsecl.benchmarks.arms import BASELINE
from sparsecl.benchmarks.ratios import summary
from sparsecl.engine.run_config import RunConfig

if TYPE_CHECKING:
    from sparsecl.engine.run import Prepared

PARTS = ("forward", "backward", "update")
"""The parts of a step, in order. Reduction of gradients counts as backward, clipping, the
optimizer and the projection onto the mask as update."""


class Timed:
    """One arm with its own model, optimizer and DeepSpeed engine, and the times of its steps."""

    def __init__(
        self, prepared: "Prepared", vocab_size: int, backends: Mapping[str, Any] | None = None
    ) -> None:
        """Build a checked run; `dist.init` has run."""
        from sparsecl.engine.build import build

        self.config, self.schedule = prepared.config, prepared.schedule
        self.built = build(
            self.config,
            prepared.deepspeed.config,
            vocab_size=vocab_size,
            topologies=prepared.topologies,
            backends=backends,
        )
        self.seconds: dict[str, list[float]] = {name: [] for name in ("step", *PARTS)}
        self.loss = float("nan")

    def step(self, rows: np.ndarray, *, keep: bool) -> None:
        """Train on rows [sequences, tokens + 1]; `keep` its times or not."""
        import torch

        from sparsecl import dist
        from sparsecl.optim.build import set_lr

        engine = self.built.engine
        set_lr(self.built.slices.optimizer, self.config.optimizer.lr)
        batches = torch.from_numpy(rows).to(dist.device()).split(self.schedule.micro)
        assert len(batches) == self.schedule.accumulation, (len(batches), self.schedule)
        watch = process.Stopwatch()
        for tokens in batches:
            weight = torch.ones(len(tokens), device=tokens.device)
            loss = engine(tokens[:, :-1], tokens[:, 1:], weight=weight)[2]
            watch.lap("forward")
            engine.backward(loss)
            watch.lap("backward")
            engine.step()
            watch.lap("update")
        times = watch.stop()
        self.loss = float(loss.detach())
        if keep:
            for name, seconds in times.items():
                self.seconds[name].append(seconds)

    def close(self) -> None:
        """Free all its memory."""
        engine = self.built.engine
        del self.built
        process.drop(engine)


def measure(
    options: argparse.Namespace, groups: Mapping[float, Mapping[str, RunConfig]]
) -> dict[str, Any]:
    """Density by density: build its arms, step them in turn, sum up, drop them.

    Raises:
        UserError: if the device, the precision or the DeepSpeed config does not fit.
        InvariantError: if an absent weight is not zero at the end.
    """
    from sparsecl import dist

    machine, prepared = process.start(options, groups)
    dist.init()
    results = [_group(options, density, runs) for density, runs in prepared.items()]
    dist.shutdown()
    return {"environment": process.finish(machine), "groups": results}


def _group(
    options: argparse.Namespace, density: float, runs: "Mapping[str, Prepared]"
) -> dict[str, Any]:
    chosen = {name: process.backends_of(run) for name, run in runs.items()}
    arms = {name: Timed(run, options.vocab, chosen[name][0]) for name, run in runs.items()}
    schedule = arms[BASELINE].schedule
    shape = (options.sequences, schedule.shape.context)

    def step(name: str, index: int, counts: bool) -> None:
        arms[name].step(process.random_rows(options, index, shape), keep=counts)

    orders = process.take_turns(
        list(arms),
        step,
        warmup=options.warmup,
        rounds=options.rounds,
        label=f"density {density:g}",
    )
    for arm in arms.values():
        arm.built.guard.audit(options.warmup + options.rounds)
    result = {
        "density": density,
        "tokens_per_step": schedule.tokens_per_step,
        "orders": orders,
        "arms": {
            name: {
                "topology": asdict(arm.config.topology),
                "choices": chosen[name][1],
                "num_tokens": schedule.tokens_per_step * len(arm.seconds["step"]),
                "last_loss": arm.loss,
                "audit_checks": arm.built.guard.checks,
                "nonzero_absent": arm.built.guard.nonzero,
                **summary(arm.seconds, arms[BASELINE].seconds, schedule.tokens_per_step),
                "seconds": arm.seconds,
            }
            for name, arm in arms.items()
        },
    }
    for arm in arms.values():
        arm.close()
    return result
