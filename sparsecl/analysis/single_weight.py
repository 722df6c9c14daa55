"""How many outputs one weight can move: random live weights, changed one at a time.

T = tokens, W = width, V = vocabulary. The weight grows by one standard deviation of its matrix. An
output counts as moved if it changes by more than 1e-6 of itself; what does not depend on the weight
keeps its bits, because the same products are computed again. The hidden units are those of the
residual stream after the last block: the norm behind it couples all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsecl import seeding
from sparsecl.analysis.live import LiveWeights, select
from sparsecl.model.gpt import GPT

THRESHOLD = 1e-6
"""Relative change from which an output counts as moved; 8 times the spacing of fp32."""


@dataclass(frozen=True)
class WeightReach:
    """Means over the sampled weights."""

    shares: dict[str, float]
    """Share of the outputs that one weight moves, by the outputs' name."""

    num_weights: int


def mean_reach(
    weights: LiveWeights,
    measure: Callable[[], Mapping[str, float]],
    *,
    num_weights: int,
    seed: int,
) -> WeightReach:
    """Change random live weights one at a time and average what is measured.

    Args:
        measure: shares of outputs that differ from those of the unchanged model.
        num_weights: weights drawn without replacement from all live weights; all if there are less.
        seed: decides which.
    """
    counts = np.array(list(weights.counts.values()))
    rng = seeding.stream(seed, "single_weight")
    chosen = rng.choice(counts.sum(), size=min(num_weights, int(counts.sum())), replace=False)
    found = [_changed(weights, counts, int(which), measure) for which in chosen]
    shares = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    return WeightReach(shares, len(found))


def output_shares(model: GPT, rows: NDArray[np.int64]) -> Callable[[], dict[str, float]]:
    """A measure for `mean_reach`: shares of hidden units and logits, over all positions.

    Args:
        rows: int64 [S, T + 1]; run one by one, so that the logits of a single row exist at once.
    """
    tokens = torch.from_numpy(rows[:, None, :-1]).to(model.norm.weight.device)
    before = [_outputs(model, row) for row in tokens]

    def measure() -> dict[str, float]:
        after = [_outputs(model, row) for row in tokens]
        pairs = list(zip(before, after, strict=True))
        hidden = [moved_share(old[0], new[0]) for old, new in pairs]
        logits = [moved_share(_logits(model, old[1]), _logits(model, new[1])) for old, new in pairs]
        return {"hidden": float(np.mean(hidden)), "logits": float(np.mean(logits))}

    return measure


def moved_share(before: Tensor, after: Tensor) -> float:
    """Share of the entries that changed by more than `THRESHOLD` of what they were."""
    return ((after - before).abs() > THRESHOLD * before.abs()).double().mean().item()


@torch.no_grad()
def _changed(
    weights: LiveWeights,
    counts: NDArray[np.int64],
    which: int,
    measure: Callable[[], Mapping[str, float]],
) -> Mapping[str, float]:
    """Measure with the live weight number `which` of all matrices changed."""
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, which, side="right"))
    layer = list(weights.layers.values())[place]
    number = which - int(ends[place] - counts[place])
    flat = layer.weight.view(-1)
    cell = number if layer.dead is None else int(_live_cells(layer.dead)[number])
    # About zero, as initial weights are drawn: a matrix of one weight has a deviation too.
    deviation = select(layer, layer.weight).square().mean().sqrt()
    old = flat[cell].clone()
    try:
        flat[cell] += deviation
        layer.forget()
        return measure()
    finally:
        flat[cell] = old
        layer.forget()


def _live_cells(dead: Tensor) -> Tensor:
    """Flat indices of the live cells, ascending."""
    return (~dead).view(-1).nonzero().view(-1)


@torch.no_grad()
def _outputs(model: GPT, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Residual stream after the last block, and the same normed: each [1, T, W]."""
    seen: list[Tensor] = []

    def remember(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = model.norm.register_forward_pre_hook(remember)
    try:
        features = model.features(tokens)
    finally:
        handle.remove()
    return seen[0], features


@torch.no_grad()
def _logits(model: GPT, features: Tensor) -> Tensor:
    return model.scores(features)[..., : model.vocab_size]
