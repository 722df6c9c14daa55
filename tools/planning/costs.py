"""Length and cost of a whole run: training, evaluations, checkpoints."""

from dataclasses import dataclass

from sparsecl.engine.plan import Plan
from sparsecl.engine.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """One run, undisturbed."""

    steps: int
    tokens: int
    evaluations: int
    """Times that all domains are scored."""

    saves: int
    train_seconds: float
    evaluation_seconds: float
    save_seconds: float
    """Of all checkpoints."""

    gpus: int

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.train_seconds + self.evaluation_seconds + self.save_seconds

    @property
    def gpu_hours(self) -> float:
        """What is paid for."""
        return self.seconds * self.gpus / 3600


def run_cost(
    config: RunConfig,
    plan: Plan,
    *,
    gpus: int,
    step_seconds: float,
    forward_token_seconds: float,
    save_seconds: float,
) -> RunCost:
    """Add up a run. Phases that may end early count in full; methods' own passes do not count.

    Args:
        forward_token_seconds: of one rank, for a token of its own.
        save_seconds: of one checkpoint.
    """
    evaluations = num_evaluations(config, plan)
    saves = len(plan.phases) + sum(
        _inside(p.num_steps, config.checkpoint.every) for p in plan.phases
    )
    return RunCost(
        steps=plan.num_steps,
        tokens=plan.num_steps * plan.tokens_per_step,
        evaluations=evaluations,
        saves=saves,
        train_seconds=plan.num_steps * step_seconds,
        evaluation_seconds=evaluations * evaluation_tokens(config, plan) * forward_token_seconds,
        save_seconds=saves * (0.0 if config.checkpoint.background else save_seconds),
        gpus=gpus,
    )


def num_evaluations(config: RunConfig, plan: Plan) -> int:
    """Before training, at the end of every phase, and every eval.every steps inside."""
    inside = sum(_inside(phase.num_steps, config.eval.every) for phase in plan.phases)
    return 1 + len(plan.phases) + inside


def evaluation_tokens(config: RunConfig, plan: Plan) -> int:
    """Tokens that one rank scores each time: whole forward calls, the last filled up with empty
    windows. With eval.tokens null the size of the data decides, and 0 is returned."""
    if config.eval.tokens is None:
        return 0
    context = plan.shape.context
    windows = -(-config.eval.tokens // context)
    calls = -(-windows // (config.eval.batch * plan.dp_size))
    return len(plan.domains) * calls * config.eval.batch * context


def _inside(num_steps: int, every: int) -> int:
    """Multiples of `every` before the last step."""
    return (num_steps - 1) // every if every else 0
