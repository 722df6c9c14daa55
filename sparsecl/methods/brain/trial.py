"""Trials of WSCL: how many blocks are frozen when a phase begins.

For each number of blocks, from those that are frozen already to all but the last, a copy of the
model is trained with them frozen: plain SGD on the phase's first sequences and remembered ones.
Its score is the mean of its loss on later sequences of the phase and on stored ones, rounded to
two decimals; the lowest wins, and of equal ones that with fewest frozen blocks.

The copies are the model itself: its weights are written and put back, to the bit, and neither
gradients nor moments of the run are touched. Held and absent weights stay where they are.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecl import dist
from sparsecl.methods.brain.config import WsclConfig
from sparsecl.methods.cl.again import read
from sparsecl.methods.context import MethodContext, SliceTensors


def block_of(name: str) -> int:
    """The block that a parameter is in, from 0; -1 = none, as for the embedding."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" else -1


def best(scores: Sequence[float]) -> int:
    """Index of the lowest score after rounding to two decimals; the first of equal ones."""
    return int(np.argmin(np.round(scores, 2)))


@torch.no_grad()
def choose(
    context: MethodContext, config: WsclConfig, frozen: int, known: NDArray[np.int64]
) -> tuple[int, list[float]]:
    """How many blocks the phase at hand freezes. Collective over the world, between steps.

    Args:
        frozen: blocks that earlier phases have frozen.
        known: names [n, 2] of what is remembered.

    Returns:
        Blocks, and the score of each candidate, the fewest frozen blocks first.
    """
    num_blocks = 1 + max(block_of(name) for name in context.shapes())
    candidates = range(frozen, max(num_blocks - 1, frozen) + 1)
    phase, size = context.progress.phase, context.batch_sequences
    rng = context.generator("wscl", "trial", phase)
    again = known[rng.integers(0, len(known), (config.trial_steps, round(config.share * size)))]
    stored = known[rng.permutation(len(known))[: config.stored]]
    first = config.trial_steps * size
    batches = [
        np.concatenate([_rows(context, phase, step * size, size), read(context, again[step])])
        for step in range(config.trial_steps)
    ]
    tests = [_rows(context, phase, first, config.validation), read(context, stored)]
    start = {item.name: item.master.clone() for item in context.slices}
    scores = []
    for num in candidates:
        for rows in batches:
            _step(context, rows, num, config.trial_lr)
        scores.append(_score(context, tests))
        _write(context, start)
    return candidates[best(scores)], scores


def _rows(context: MethodContext, phase: int, first: int, num: int) -> NDArray[np.int64]:
    return context.rows(phase, np.arange(first, first + num))


def _step(context: MethodContext, rows: NDArray[np.int64], num: int, lr: float) -> None:
    """One step of SGD on all that is in no frozen block. Collective over the world."""
    gradients, new = context.movable(context.mean_gradients(rows)), {}
    for item in context.slices:
        if not 0 <= block_of(item.name) < num:
            # A pass leaves it on the GPU, and under offload masters are on the CPU.
            gradient = gradients[item.name].to(item.master.device)
            new[item.name] = item.master - lr * gradient
        else:
            new[item.name] = item.master
    _write(context, new)


def _write(context: MethodContext, values: SliceTensors) -> None:
    """Give the model other weights. Collective over dp."""
    for name in context.shapes():
        context.write(name, context.whole(name, values))


def _score(context: MethodContext, tests: Sequence[NDArray[np.int64]]) -> float:
    """Mean over `tests` of the loss per token on each, the same on all ranks. Collective."""
    model = context.frozen_copy()
    micro = max(1, context.batch_sequences // (dist.dp_size() * context.progress.num_micro_steps))
    total = torch.zeros(1, dtype=torch.float64, device=dist.device())
    for rows in tests:
        for first in range(0, len(rows), micro):
            losses = model(rows[first : first + micro]).losses.double()
            total += losses.mean(dim=1).sum().to(total.device) / len(rows) / len(tests)
    return float(dist.all_reduce(total)) / dist.world_size()


def held_blocks(context: MethodContext, num: int) -> Mapping[str, torch.Tensor]:
    """bool of every parameter's tp-local shape: it is in one of the first `num` blocks. Local."""
    return {
        name: torch.full(tuple(shape), 0 <= block_of(name) < num)
        for name, shape in context.shapes().items()
    }
