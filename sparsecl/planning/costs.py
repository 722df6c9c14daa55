"""Length and cost of a whole run: training, evaluations, checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass

from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Schedule


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
    schedule: Schedule,
    *,
    gpus: int,
    validation: Mapping[str, int],
    step_seconds: float,
    forward_token_seconds: float,
    save_seconds: float,
) -> RunCost:
    """Add up a run. Phases that may end early count in full; methods' own passes do not count.

    Args:
        validation: domain -> tokens of its validation text; empty if not known.
        forward_token_seconds: of one rank, for a token of its own.
        save_seconds: of one checkpoint.
    """
    evaluations = num_evaluations(config, schedule)
    saves = len(schedule.phases) + sum(
        _inside(p.num_steps, config.checkpoint.every) for p in schedule.phases
    )
    return RunCost(
        steps=schedule.num_steps,
        tokens=schedule.num_steps * schedule.tokens_per_step,
        evaluations=evaluations,
        saves=saves,
        train_seconds=schedule.num_steps * step_seconds,
        evaluation_seconds=evaluation_tokens(config, schedule, validation) * forward_token_seconds,
        save_seconds=saves * (0.0 if config.checkpoint.background else save_seconds),
        gpus=gpus,
    )


def num_evaluations(config: RunConfig, schedule: Schedule) -> int:
    """Before training, at the end of every phase, and every eval.every steps inside."""
    inside = sum(_inside(phase.num_steps, config.eval.every) for phase in schedule.phases)
    return 1 + len(schedule.phases) + inside


def evaluation_tokens(config: RunConfig, schedule: Schedule, validation: Mapping[str, int]) -> int:
    """Tokens that one rank scores in the whole run: whole forward calls, the last of a domain
    filled up with empty windows. Where neither a cap nor the size of the text is known, none are
    counted. The few windows at a phase end that are not among those of eval.end_tokens are not.

    Args:
        validation: domain -> tokens of its validation text; empty if not known.
    """
    borders = 1 + len(schedule.phases)
    times = {"inside": num_evaluations(config, schedule) - borders, "ends": borders}
    caps = {"inside": config.eval.tokens, "ends": config.eval.cap_at_ends}
    per_call, calls = config.eval.batch * schedule.dp_size, 0
    for text, cap in caps.items():
        for name in schedule.domains:
            known = [count for count in (cap, validation.get(name)) if count is not None]
            windows = -(-min(known, default=0) // schedule.shape.context)
            calls += times[text] * -(-windows // per_call)
    return calls * config.eval.batch * schedule.shape.context


def _inside(num_steps: int, every: int) -> int:
    """Multiples of `every` before the last step."""
    return (num_steps - 1) // every if every else 0
