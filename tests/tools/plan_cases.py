"""What tests of tools/plan.py measure on real ranks: bytes of model state and of collectives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsecl import dist
from sparsecl.benchmarks import memory, process, wire
from sparsecl.engine.build import Built, build
from sparsecl.engine.run import Prepared, check
from sparsecl.engine.schedule import Schedule
from sparsecl.optim.build import set_lr
from tests.distributed import cases


def measure(cache: str, overrides: tuple[str, ...], names: list[tuple[str, str]]) -> list[Any]:
    """State and traffic of (DeepSpeed JSON, storage) one after the other. Collective over the
    world; the ranks of the run are all of it."""
    found = []
    for stage, storage in names:
        config = cases.load(cache, (*overrides, f"topology.storage={storage}"))
        if not dist.is_initialized():
            dist.init(config.parallel.tensor)
        prepared = check(config, cases.ROOT / "ds_configs" / f"{stage}.json", None)
        found.append(measure_one(prepared))
    return found


def measure_one(prepared: Prepared) -> dict[str, Any]:
    """A step for DeepSpeed to learn the order of parameters, one for the traffic, and the state.

    ZeRO-1 keeps whole gradients from one micro-batch to the next, so the largest counts.
    """
    config, schedule = prepared.config, prepared.schedule
    built = build(config, prepared.deepspeed.config, vocab_size=257, topologies=prepared.topologies)
    set_lr(built.slices.optimizer, config.optimizer.lr)
    take_step(built, schedule)
    counter, gradients = wire.make_counter(), []
    with counter:
        take_step(built, schedule, lambda: gradients.append(gradient_bytes(built.engine)))
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in built.engine.module.parameters())
    state = memory.state_bytes(built, schedule, 257, schedule.shape.context)
    process.drop(built.engine)
    return {
        "state": {**state, "gradients": max(gradients)},
        "parameters": parameters,
        "bytes": dict(counter.bytes),
        "calls": dict(counter.calls),
    }


def measure_methods(
    cache: str, folder: str, stage: str, overrides: tuple[str, ...]
) -> dict[str, int]:
    """Bytes after a whole run: the model's state, and `beside`, what methods and holds keep."""
    trainer, _, built = cases.assemble(cases.load(cache, overrides), stage, folder)
    trainer.run()
    holds = built.guard.holds
    kept = [vars(method) for method in trainer.methods.methods]
    kept += [holds._owned, holds._union, holds._anchors]
    beside = memory.storage_bytes(memory._tensors(kept))
    state = memory.state_bytes(built, trainer.schedule, 257, trainer.schedule.shape.context)
    return {**state, "beside": beside}


def take_step(
    built: Built, schedule: Schedule, after_backward: Callable[[], None] = lambda: None
) -> None:
    """One optimizer step on any tokens."""
    for _ in range(schedule.accumulation):
        tokens = torch.zeros(schedule.micro, schedule.shape.context + 1, dtype=torch.int64)
        weight = torch.ones(schedule.micro)
        built.engine.backward(built.engine(tokens[:, :-1], tokens[:, 1:], weight=weight)[2])
        after_backward()
        built.engine.step()


def gradient_bytes(engine: Any) -> int:
    """Bytes that gradients cover right now."""
    return memory.covered_bytes(memory._gradients(engine))


def saved_bytes(cache: str, folder: str, overrides: tuple[str, ...]) -> int:
    """Tensor bytes of the checkpoint that a run of one step leaves."""
    config = cases.load(cache, ("phases.steps=1", *overrides))
    trainer, _, _ = cases.assemble(config, "zero1", folder)
    trainer.run()
    return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
