"""What a run costs before it starts: parameters, work and length, from its config alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from sparsecl.engine import ledger
from sparsecl.engine.deepspeed import ds_config
from sparsecl.engine.run import run_numbers, vocabulary
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import make_schedule
from sparsecl.engine.topology import draw_topologies
from sparsecl.model.flops import Counted


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
    """Forward and backward by live weights; where their number changes, the mean over the run."""

    gradient_flops: int
    """Of the run: gradients of absent weights, which its methods ask for."""

    score_flops: int
    """Of the run: scores of its graph."""

    steps: int
    """Optimizer steps; an upper bound if a phase may end early."""

    tokens: int
    """Training tokens, likewise."""

    @property
    def flops(self) -> int:
        """Of the run."""
        return self.flops_per_token * self.tokens + self.gradient_flops + self.score_flops


def price(
    config: RunConfig,
    ds_path: Path,
    *,
    draw: Callable[[RunConfig], Mapping[str, Counted]] = draw_topologies,
) -> Price:
    """Check a config as a run would, and count.

    Args:
        draw: the live weights of a config by layer name; for who has counted them already.

    Raises:
        UserError: what a run with this config would say before any work.
    """
    schedule = make_schedule(config, world_size=config.parallel.tensor)
    ds_config.resolve(ds_path, run_numbers(config, schedule))
    topologies = draw(config)
    counts = ledger.count(config, vocabulary(config), topologies)
    found = ledger.flops(config, schedule, counts, topologies)
    return Price(
        live=counts.live,
        total=counts.total,
        density=counts.density_masked,
        flops_per_token=round(Fraction(found.training, found.tokens)),
        gradient_flops=found.gradients,
        score_flops=found.scores,
        steps=schedule.num_steps,
        tokens=found.tokens,
    )
