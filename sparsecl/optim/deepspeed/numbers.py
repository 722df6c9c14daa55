"""DeepSpeed's own numbers that a resumed run goes on from: its counters and its loss scale."""

from collections.abc import Mapping
from typing import Any

from sparsecl.optim.deepspeed.known import take

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def counters(engine: Any) -> dict[str, int]:
    """Since its optimizer was new."""
    return {key: take(engine, key) for key in COUNTERS}


def set_counters(engine: Any, values: Mapping[str, int]) -> None:
    """Go on counting from there."""
    for key in COUNTERS:
        take(engine, key)
        setattr(engine, key, values[key])
    # It finds the end of an accumulation by counting micro-batches; another layout may have taken
    # another number of them per step.
    take(engine, "micro_steps")
    engine.micro_steps = values["global_steps"] * engine.gradient_accumulation_steps()


def count_skipped(engine: Any) -> None:
    """One more step was left out without DeepSpeed's knowing."""
    engine.skipped_steps = take(engine, "skipped_steps") + 1


def scale_state(scaler: Any) -> dict[str, Any]:
    """The numbers of a scale that moves; none of any other.

    A fixed one follows from the precision and the DeepSpeed JSON, which may have changed since:
    65536 is as wrong for bf16 as 1 is for fp16.
    """
    return {key: getattr(scaler, key) for key in _fields(scaler)}


def set_scale_state(scaler: Any, values: Mapping[str, Any]) -> None:
    """Take back what `scale_state` gave, as far as this scaler has it."""
    for key in _fields(scaler):
        if key in values:
            setattr(scaler, key, values[key])


def _fields(scaler: Any) -> list[str]:
    moves = getattr(scaler, "dynamic_loss_scale", getattr(scaler, "dynamic", False))
    return [key for key in SCALER_FIELDS if moves and hasattr(scaler, key)]
