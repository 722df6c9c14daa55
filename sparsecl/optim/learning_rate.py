"""Learning rate as a pure function of the place inside a phase."""

import math

from sparsecl.optim.config import ScheduleConfig

MIN_WARMUP = 4
"""Steps of any warm-up: a share of a short phase rounds to none, and its first update, whose size
Adam does not take from the gradient, would be a full one. A phase that is shorter ends warming up.
"""


def lr_factor(config: ScheduleConfig, *, phase: int, step: int, num_steps: int) -> float:
    """Share of the peak learning rate in use at `step` of a phase.

    Args:
        phase: 0-based.
        step: 0-based optimizer step inside the phase.
        num_steps: optimizer steps of the phase (its largest number, if it may stop early).

    Returns:
        A number in (0, 1]: (step + 1) / warm-up steps while warming up, then the decay, which
        reaches `final` at the last step; all of it times `later` after the first phase.
    """
    return (config.later if phase else 1.0) * _shape(config, phase, step, num_steps)


def _shape(config: ScheduleConfig, phase: int, step: int, num_steps: int) -> float:
    """The curve of one phase by itself."""
    warms_up = config.warmup > 0 and (config.rewarm or phase == 0)
    warmup_steps = max(MIN_WARMUP, round(config.warmup * num_steps)) if warms_up else 0
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    if config.kind == "linear":
        return 1.0 - (1.0 - config.final) * progress
    return config.final + (1.0 - config.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
