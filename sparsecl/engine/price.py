"""What a run costs before it starts: parameters, work and length, from its config alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsecl.engine import ledger
from sparsecl.engine.deepspeed import ds_config
from sparsecl.engine.run import run_numbers, vocabulary
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import make_schedule
from sparsecl.engine.topology import draw_topologies
from sparsecl.model.flops import ParameterCounts, training_flops_per_token


@dataclass(frozen=True)
class Price:
    """Of the whole model and run, over all ranks."""

    live: int
    """Parameters that live (role topology) or are trained (role update)."""

    total: int
    """Parameters of the dense model of this shape."""

    density: float
    """Live share of the masked matrices."""

    flops_per_token: int
    """Training FLOPs by live weights."""

    steps: int
    """Optimizer steps; an upper bound if a phase may end early."""

    tokens: int
    """Training tokens, likewise."""


def price(
    config: RunConfig, ds_path: Path, *, count: Callable[[RunConfig], ParameterCounts] | None = None
) -> Price:
    """Check a config as a run would, and count.

    Args:
        count: for who has counted already; None = draw the topologies and count them.

    Raises:
        UserError: what a run with this config would say before any work.
    """
    schedule = make_schedule(config, world_size=config.parallel.tensor)
    ds_config.resolve(ds_path, run_numbers(config, schedule))
    counts = (count or _draw_and_count)(config)
    flops = training_flops_per_token(schedule.shape, counts, role=config.topology.role)
    return Price(
        live=counts.live,
        total=counts.total,
        density=counts.density_masked,
        flops_per_token=flops.useful,
        steps=schedule.num_steps,
        tokens=schedule.num_steps * schedule.tokens_per_step,
    )


def _draw_and_count(config: RunConfig) -> ParameterCounts:
    return ledger.count(config, vocabulary(config), draw_topologies(config))
