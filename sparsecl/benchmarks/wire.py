"""Bytes that data-parallel ranks hand to collectives for one gradient reduction, counted.

The count is taken below DeepSpeed, where torch dispatches every collective to its process group,
from the first backward pass of a step to the end of its last one, in which DeepSpeed reduces. Sums
(all-reduce, reduce, reduce-scatter) are gradients there; ZeRO-3 also gathers parameters, which is
named but not counted. What a rank hands over does not depend on how the group moves it: a ring
all-reduce sends and receives 2 (n - 1) / n of it on each rank. A step has one micro-batch of one
sequence for each rank here: with more of them ZeRO 2 and 3 reduce after each.
"""

import argparse
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparsecl.benchmarks import process
from sparsecl.benchmarks.arms import BASELINE
from sparsecl.checkout import ROOT
from sparsecl.engine.run_config import BatchConfig, RunConfig

STAGES = (0, 1, 2, 3)
SUMS = ("allreduce", "reduce")
"""How the names of operations begin that carry gradients; the second covers reduce_scatter."""


@dataclass(frozen=True)
class Case:
    """One arm under one ZeRO stage."""

    arm: str
    density: float
    stage: int
    config: RunConfig
    vocab: int

    @property
    def ds_path(self) -> Path:
        """The DeepSpeed JSON of the stage."""
        return ROOT / "ds_configs" / f"zero{self.stage}.json"


def measure(
    options: argparse.Namespace, groups: Mapping[float, Mapping[str, RunConfig]]
) -> dict[str, Any]:
    """Start --dp processes, let them take one step of every case, and compare their counts.

    Raises:
        UserError: if a case cannot run.
        InvariantError: if a worker died.
    """
    machine, _ = process.start(options, groups)
    cases: list[Case] = []
    for density, configs in groups.items():
        for name, config in configs.items():
            if name != BASELINE or not cases:
                shown = 1.0 if name == BASELINE else density
                config = one_sequence(config, options.dp)
                cases += [Case(name, shown, stage, config, options.vocab) for stage in STAGES]
    rows = run_workers(cases, options.dp)
    return {"environment": process.finish(machine), "dp": options.dp, "rows": rows}


def one_sequence(config: RunConfig, num_ranks: int) -> RunConfig:
    """The same model with one sequence for each rank in a step."""
    return replace(config, batch=BatchConfig(sequences=num_ranks, micro=1))


def run_workers(cases: Sequence[Case], num_processes: int) -> list[dict[str, Any]]:
    """Count all cases on fresh processes. Returns rank 0's results.

    Raises:
        InvariantError: if a worker died, or the ranks do not agree.
    """
    from torch import multiprocessing
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

    from sparsecl.errors import InvariantError

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with multiprocessing.Manager() as manager:
        answers = manager.dict()
        arguments = (num_processes, port, list(cases), answers)
        try:
            spawn(_work, arguments, nprocs=num_processes)
        except (ProcessRaisedException, ProcessExitedException) as e:
            raise InvariantError(f"--wire: {str(e).strip().splitlines()[-1]}") from e
        found = [answers[rank] for rank in range(num_processes)]
    if any(other != found[0] for other in found):
        raise InvariantError("--wire: the ranks have counted different bytes")
    return found[0]


def _work(rank: int, world_size: int, port: int, cases: Sequence[Case], answers: Any) -> None:
    """One worker."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    process.hush()
    import torch

    torch.set_num_threads(1)
    answers[rank] = [count_case(case) for case in cases]


def count_case(case: Case) -> dict[str, Any]:
    """One step of one case on this rank. Collective over the world.

    Returns:
        `bytes` handed to sums; `expected` = parameters that exist x bytes of an element; `padding`
        on top of it; `calls` by name, and `other_calls` of the same time that carry no gradients.
    """
    import torch

    from sparsecl import dist
    from sparsecl.engine.build import build
    from sparsecl.engine.run import check
    from sparsecl.optim.build import set_lr
    from sparsecl.optim.deepspeed.parameters import num_elements

    if not dist.is_initialized():
        dist.init()
    prepared = check(case.config, case.ds_path, None)
    backends, _ = process.backends_of(prepared)
    built = build(
        prepared.config,
        prepared.deepspeed.config,
        vocab_size=case.vocab,
        topologies=prepared.topologies,
        backends=backends,
    )
    engine, schedule = built.engine, prepared.schedule
    set_lr(built.slices.optimizer, case.config.optimizer.lr)
    counter = make_counter()
    generator = torch.Generator().manual_seed(dist.rank())
    for _ in range(schedule.accumulation):
        shape = (schedule.micro, schedule.shape.context + 1)
        tokens = torch.randint(case.vocab, shape, generator=generator)
        losses, _ = engine(tokens[:, :-1], tokens[:, 1:])
        loss = losses.mean()
        with counter:
            engine.backward(loss)
        engine.step()
    sizes = [num_elements(p) for p in engine.module.parameters()]
    # ZeRO-3 gives every rank an equal part of every parameter and fills the last one up.
    fill = sum(-size % dist.dp_size() for size in sizes) if case.stage == 3 else 0
    element = 4 if case.config.precision == "fp32" else 2
    process.drop(engine)
    return {
        "arm": case.arm,
        "density": case.density,
        "stage": case.stage,
        "topology": asdict(case.config.topology),
        "parameters": sum(sizes),
        "expected": sum(sizes) * element,
        "padding": fill * element,
        "bytes": sum(n for name, n in counter.bytes.items() if name.startswith(SUMS)),
        "calls": {n: k for n, k in counter.calls.items() if n.startswith(SUMS)},
        "other_calls": {n: k for n, k in counter.calls.items() if not n.startswith(SUMS)},
    }


def make_counter() -> Any:
    """A context that counts calls and bytes of collectives by name while it is open."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counted(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Counter[str] = Counter()
            self.bytes: Counter[str] = Counter()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            namespace, _, name = func.name().partition("::")
            if namespace == "c10d":
                # Scatters and gathers take (output, input, ...), sums work in place.
                given = args["scatter" in name or "gather" in name]
                tensors = [t for t in tree_leaves(given) if isinstance(t, torch.Tensor)]
                short = name.strip("_")
                self.calls[short] += 1
                self.bytes[short] += sum(t.numel() * t.element_size() for t in tensors)
            return func(*args, **(kwargs or {}))

    return Counted()
