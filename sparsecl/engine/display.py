"""What a person sees before and during the training: header, progress, pictures of masks."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from sparsecl.engine.plan import Plan
from sparsecl.engine.run_config import RunConfig
from sparsecl.model.flops import (
    ParameterCounts,
    state_bytes_per_rank,
    training_flops_per_token,
)
from sparsecl.topology.layer import LayerTopology
from sparsecl.topology.report import describe

PICTURE_SIDE = 128  # pixels; a larger mask is averaged down
MAX_PICTURES = 6


def header(
    config: RunConfig,
    plan: Plan,
    counts: ParameterCounts,
    topologies: Mapping[str, LayerTopology],
    *,
    stage: int,
    world_size: int,
    data: str,
) -> str:
    """What is about to be trained, in a few aligned lines."""
    shape = plan.shape
    tensor = config.parallel.tensor
    role = " (role update)" if config.topology.role == "update" and topologies else ""
    lines = {
        "run": f"{config.name}, seed {config.seed}",
        "model": f"GPT {shape.layers} layers x {shape.width} wide, {shape.heads} heads, "
        f"context {shape.context}",
        "parameters": f"{counts.live:,} live of {counts.total:,} (density {counts.density_model:.3f}; "
        f"masked matrices {counts.density_masked:.3f})",
        "topology": describe(config.topology, topologies) + role,
        "layout": f"{world_size} process{'es' if world_size > 1 else ''}: tp {tensor} x dp "
        f"{plan.dp_size}, ZeRO {stage}, {config.precision}",
        "batch": f"{config.batch.sequences} sequences = {plan.tokens_per_step:,} tokens per step, "
        f"{plan.accumulation} x {plan.micro} per rank",
        "data": data,
        "phases": ", ".join(
            f"{plan.domains[phase.domain]} {phase.num_steps}" for phase in plan.phases
        )
        + " steps",
    }
    return "\n".join(f"  {key:<11} {value}" for key, value in lines.items())


def costs(config: RunConfig, plan: Plan, counts: ParameterCounts, *, vocab: int, stage: int) -> str:
    """FLOPs of training and bytes of model state per rank, for --dry_run."""
    flops = training_flops_per_token(plan.shape, counts, role=config.topology.role)
    state = state_bytes_per_rank(
        plan.shape,
        vocab,
        zero_stage=stage,
        precision=config.precision,
        tp_size=config.parallel.tensor,
        dp_size=plan.dp_size,
        dense=config.topology.kind == "dense",
    )
    tokens = plan.num_steps * plan.tokens_per_step
    parts = ("weights", "gradients", "master", "moments", "masks")
    rows = [f"    {part:<10} {_bytes(getattr(state, part)):>10}" for part in parts]
    return "\n".join(
        [
            f"  FLOPs per token: {flops.useful:.3e} useful (live weights), {flops.dense:.3e} executed "
            "by masked storage",
            f"  Tokens: {tokens:,}; training: {tokens * flops.dense:.3e} FLOPs executed",
            f"  Model state per rank, {_bytes(state.total)} (activations come on top):",
            *rows,
        ]
    )


def data_line(domains: Mapping[str, tuple[int, int]], tokenizer: str) -> str:
    """Training and validation tokens of each domain in one line."""
    parts = [
        f"{name} {_count(train)}+{_count(validation)}"
        for name, (train, validation) in domains.items()
    ]
    return f"{', '.join(parts)} tokens (train+validation), {tokenizer}"


class Progress:
    """A tqdm bar for one phase on stderr; silent on ranks other than 0."""

    def __init__(self, label: str, *, total: int, done: int, show: bool) -> None:
        """`done` steps of `total` lie behind (resume)."""
        # A log file gets a line every 15 seconds, a terminal ten a second.
        interval = 0.1 if sys.stderr.isatty() else 15.0
        self._bar = tqdm(
            desc=label,
            total=total,
            initial=done,
            unit="step",
            disable=not show,
            mininterval=interval,
            dynamic_ncols=sys.stderr.isatty(),
            ncols=None if sys.stderr.isatty() else 100,
        )

    def advance(self, **figures: str) -> None:
        """One step more, with figures to show."""
        if figures:
            self._bar.set_postfix(figures, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.close()


def mask_pictures(topologies: Mapping[str, LayerTopology]) -> dict[str, np.ndarray]:
    """Pictures of the first masks: layer name -> [h, w] in [0, 1], local density, white = live."""
    pictures = {}
    for name in list(topologies)[:MAX_PICTURES]:
        mask = topologies[name].mask().astype(np.float32)
        factors = [max(1, size // PICTURE_SIDE) for size in mask.shape]
        rows, columns = (size // factor * factor for size, factor in zip(mask.shape, factors, strict=True))
        cells = mask[:rows, :columns].reshape(
            rows // factors[0], factors[0], columns // factors[1], factors[1]
        )
        density = cells.mean(axis=(1, 3))
        pictures[name] = density / max(float(density.max()), 1e-9)
    return pictures


def flat_hparams(config: RunConfig) -> dict[str, Any]:
    """The settings that a comparison of runs sorts by."""
    return {
        "seed": config.seed,
        "topology": config.topology.kind,
        "density": config.topology.rho,
        "role": config.topology.role,
        "lr": config.optimizer.lr,
        "optimizer": config.optimizer.kind,
        "precision": config.precision,
        "ewc": config.methods.ewc.strength if config.methods.ewc else 0.0,
    }


def _count(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} B"
