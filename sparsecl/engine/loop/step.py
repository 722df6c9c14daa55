"""One optimizer step: forward, backward, and whether it may be taken.

A gradient that is not finite anywhere must not reach the weights anywhere. DeepSpeed's ZeRO stages
1-3 agree on that among the ranks and discard the step. Its stage 0 does not ask other ranks, and in
fp32 does not look at all, so there it is decided here (but for fp16, where the loss scale must hear
of it). Either way nothing changes, bit for bit. An fp16 scale that cannot go lower ends the run.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparsecl import dist, watchdog
from sparsecl.engine.build import Built
from sparsecl.engine.outcomes import StepResult
from sparsecl.errors import InvariantError
from sparsecl.optim.deepspeed.numbers import count_skipped

Hook = Callable[[], None]


@dataclass(frozen=True)
class Looks:
    """What a step shall look at beside what it must."""

    grad_norm: bool = False
    bad_gradients: bool = False


def take_step(
    built: Built,
    micro_losses: Iterator[tuple[torch.Tensor, torch.Tensor]],
    *,
    name: str,
    accumulation: int,
    looks: Looks,
    before_step: Sequence[Hook] = (),
    skip: Callable[[], bool] = lambda: False,
) -> StepResult:
    """Run all micro-batches of one step. Collective over the world.

    Args:
        name: for the watchdog.
        micro_losses: for each micro-batch its mean loss, and the loss to go backward from.
        before_step: called in order when the gradients are reduced and not yet clipped.
        skip: asked after them, the same on all ranks: True = no update on these gradients.
    """
    engine, slices = built.engine, built.slices
    losses: list[torch.Tensor] = []
    norm, bad, fit, skips = None, list[str](), True, False
    for micro_step, (loss, whole) in enumerate(micro_losses):
        last = micro_step + 1 == accumulation
        losses.append(loss.detach())
        watchdog.beat(f"{name}, backward of micro-batch {micro_step}")
        engine.backward(whole * slices.wrapper.missing_scale)
        if last:
            for hook in before_step:
                hook()
            norm = slices.grad_norm() if looks.grad_norm else None
            bad = built.slices.bad_gradients() if looks.bad_gradients else []
            watchdog.beat(f"{name}, update")
            skips = skip()
            fit = _step(built, skips)
            if fit:
                watchdog.warm()
        else:
            engine.step()
    return StepResult(losses, norm, fit and not skips, bad, fit and skips)


def _step(built: Built, skips: bool) -> bool:
    """Let DeepSpeed step, or discard. Returns True if every gradient was finite: the update was
    made, or left out where `skips` says so."""
    if not skips:
        return _finite_step(built)
    with _without_update(built.slices.optimizer):
        fit = _finite_step(built)
    if fit:  # else it is counted already
        count_skipped(built.engine)
    return fit


def _finite_step(built: Built) -> bool:
    engine = built.engine
    if engine.fp16_enabled():
        return _scaled_step(built)
    if built.slices.partitioned:
        engine.step()
        return bool(engine.was_step_applied())
    bad = torch.tensor([float(bool(built.slices.bad_gradients()))], device=dist.device())
    if not float(dist.all_reduce(bad, op="max")):
        engine.step()
        return True
    with _without_update(engine.optimizer):
        engine.step()
    count_skipped(engine)
    return False


def _scaled_step(built: Built) -> bool:
    """Step under a loss scale, which DeepSpeed lowers when a gradient overflows.

    Raises:
        InvariantError: on all ranks, if it overflows at the lowest scale.
    """
    scale = built.slices.loss_scale
    at_minimum = (
        f"a gradient overflows fp16 at the lowest loss scale, {scale:g}. Use precision=bf16, lower "
        "optimizer.lr, or look at the data."
    )
    try:
        built.engine.step()
    except Exception as error:  # ZeRO's own; it has no kind of error for this
        if "loss scale already at minimum" not in str(error):
            raise
        raise InvariantError(at_minimum) from None
    applied = bool(built.engine.was_step_applied())
    # Stage 0 says nothing: it would discard every step from here on.
    if not applied and scale == built.slices.wrapper.least_scale:
        raise InvariantError(at_minimum)
    return applied


@contextlib.contextmanager
def _without_update(optimizer: Any) -> Iterator[None]:
    """DeepSpeed does all that belongs to a step but the update: gradients are dropped, counters
    and the place in the accumulation move on."""
    before = vars(optimizer).get("step")  # its class's method is not in there
    optimizer.step = lambda *_, **__: None
    try:
        yield
    finally:
        del optimizer.step
        if before is not None:
            optimizer.step = before
