"""How much learning one domain moves the others: gradients side by side, and one real update.

D = domains, S = sequences of a domain, T = tokens, W = width, V = vocabulary, N = live weights.

Gradients are of the mean loss per token. On the live weights g_i . g_j says how much a small step
down the loss of domain j changes that of domain i: by -eta g_i . g_j to first order. One dot
product cannot be compared between densities, because there are fewer weights to sum over and they
have other sizes; the cosine can, and so can the effect of a step of a given relative size,
|dw| = eps |w| over the live weights of the masked matrices. All other parameters stay.

A row of token ids [T + 1] gives T inputs and T targets.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsecl.analysis.live import LiveTensors, LiveWeights, dot, norm, select
from sparsecl.errors import DataError
from sparsecl.model.gpt import GPT

FloatMatrix = NDArray[np.float64]
Rows = NDArray[np.int64]

CHUNK_CELLS = 1 << 23
"""Logits that exist at once in float64: 64 MiB, and as much again for their logarithms."""

CHUNK_TOKENS = 4096
"""Tokens of one forward pass; a longer sequence is one by itself."""


@dataclass(frozen=True, eq=False)
class DomainGradient:
    """The gradient of one domain's mean loss per token, fp32."""

    live: dict[str, Tensor]
    """By layer name, of the live weights [N] of the masked matrices."""

    other: dict[str, Tensor]
    """By name, of all other parameters."""


@dataclass(frozen=True, eq=False)
class UpdateEffects:
    """What one update on domain j (row) does to domain i (column)."""

    loss: NDArray[np.float64]
    """[D], nats per token before any update."""

    loss_change: FloatMatrix
    """[D, D], mean loss after minus before; nats per token."""

    predicted: FloatMatrix
    """[D, D], the same to first order, -eta_j g_i . g_j."""

    kl: FloatMatrix
    """[D, D], mean KL(before || after) of the next-token distribution; nats per token."""


def domain_gradients(
    model: GPT, weights: LiveWeights, domains: Mapping[str, Rows]
) -> dict[str, DomainGradient]:
    """The gradient of each domain. Takes 4 bytes per live parameter and domain.

    Raises:
        DataError: if a gradient is zero or not finite, as after a run that diverged.
    """
    found = {}
    for name, rows in domains.items():
        found[name] = _gradient(model, weights, rows)
        size = norm(found[name].live)
        if not (math.isfinite(size) and size > 0.0):
            raise DataError(
                f"domain {name}: the norm of its gradient is {size}: nothing to compare"
            )
    return found


def gram(gradients: Sequence[LiveTensors]) -> FloatMatrix:
    """Inner products [D, D], summed in float64."""
    result = np.empty((len(gradients), len(gradients)))
    for i, one in enumerate(gradients):
        for j in range(i + 1):
            result[i, j] = result[j, i] = dot(one, gradients[j])
    return result


def cosines(products: FloatMatrix) -> FloatMatrix:
    """Cosines [D, D] from inner products [D, D]; the diagonal is 1."""
    norms = np.sqrt(np.diag(products))
    result = products / np.outer(norms, norms)
    np.fill_diagonal(result, 1.0)
    return result


def overlaps(gradients: Sequence[LiveTensors], share: float) -> FloatMatrix:
    """Jaccard index [D, D] of the weights with the largest |g|, over all matrices together.

    Sets drawn by chance have share / (2 - share) in common.

    Args:
        share: of the live weights that is in each set, in (0, 1]; at least one weight.
    """
    tops = [_largest(gradient, share) for gradient in gradients]
    result = np.eye(len(tops))
    for i, one in enumerate(tops):
        for j in range(i):
            union = int((one | tops[j]).sum())
            result[i, j] = result[j, i] = int((one & tops[j]).sum()) / union
    return result


def update_effects(
    model: GPT,
    weights: LiveWeights,
    domains: Mapping[str, Rows],
    gradients: Mapping[str, LiveTensors],
    *,
    eps: float,
) -> UpdateEffects:
    """Make one gradient step on each domain in turn and measure all domains.

    The live weights of the masked matrices move by -eta_j g_j with eta_j = eps |w| / |g_j|, and are
    then put back bit for bit.

    Args:
        domains: rows int64 [S, T + 1] by name; a step is measured on what it was taken from, too.
        gradients: of the live weights, by the same names.
        eps: relative size |dw| / |w| of the step.
    """
    names = list(domains)
    before = {name: _score(model, domains[name]) for name in names}
    products = gram([gradients[name] for name in names])
    after, kl = np.empty_like(products), np.empty_like(products)
    with weights.restored() as start:
        etas = eps * norm(start) / np.sqrt(np.diag(products))
        for j, updated in enumerate(names):
            gradient, eta = gradients[updated], float(etas[j])
            weights.write({n: value.sub(gradient[n], alpha=eta) for n, value in start.items()})
            for i, name in enumerate(names):
                found = _score(model, domains[name], before[name].features)
                after[j, i], kl[j, i] = found.loss, found.kl
            weights.write(start)
    loss = np.array([before[name].loss for name in names])
    return UpdateEffects(loss, after - loss, -etas[:, None] * products, kl)


# ---- one domain ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Score:
    loss: float
    kl: float
    features: list[Tensor]
    """[B, T, W] of each chunk of rows; with the embedding, which does not move, they give the
    distribution at a fraction of its bytes."""


def _gradient(model: GPT, weights: LiveWeights, rows: Rows) -> DomainGradient:
    """Of the mean loss of rows [S, T + 1], summed over chunks of them."""
    params = dict(model.named_parameters())
    sums: dict[str, Tensor] = {}
    for tokens in _chunks(model, rows):
        weight = torch.ones(len(tokens), device=tokens.device)
        mean = model(tokens[:, :-1], tokens[:, 1:], weight=weight)[2]
        share = len(tokens) / rows.shape[0]
        parts = torch.autograd.grad(mean * share, list(params.values()))
        for name, part in zip(params, parts, strict=True):
            sums[name] = part if name not in sums else sums[name].add_(part)
    live = {
        name: select(layer, sums.pop(f"{name}.weight")) for name, layer in weights.layers.items()
    }
    return DomainGradient(live, sums)


def _largest(gradient: LiveTensors, share: float) -> Tensor:
    """bool [N of all matrices]: the share of weights with the largest |g|."""
    sizes = torch.cat([value.reshape(-1).abs() for value in gradient.values()])
    count = max(1, round(share * sizes.numel()))
    chosen = torch.zeros(sizes.numel(), dtype=torch.bool, device=sizes.device)
    chosen[sizes.topk(count).indices] = True
    return chosen


@torch.no_grad()
def _score(model: GPT, rows: Rows, before: Sequence[Tensor] | None = None) -> _Score:
    """Mean loss, and KL from the distribution of the features `before`, in nats per token.

    Logarithms are taken in float64: a small update changes the loss by less than fp32 resolves.
    """
    loss, kl, features = 0.0, 0.0, []
    for index, tokens in enumerate(_chunks(model, rows)):
        features.append(model.features(tokens[:, :-1]))
        targets = tokens[:, 1:].reshape(-1)
        for part in _spans(model, targets.numel()):
            new = log_probabilities(model, features[-1].flatten(0, 1)[part])
            loss -= new.gather(1, targets[part, None]).sum().item()
            if before is not None:
                old = log_probabilities(model, before[index].flatten(0, 1)[part])
                kl += (old.exp() * (old - new)).sum().item()
    num_tokens = rows.shape[0] * (rows.shape[1] - 1)
    return _Score(loss / num_tokens, kl / num_tokens, features)


def log_probabilities(model: GPT, features: Tensor) -> Tensor:
    """float64 [n, V] over the real vocabulary, from features [n, W]."""
    return model.scores(features[None])[0, :, : model.vocab_size].double().log_softmax(-1)


def _chunks(model: GPT, rows: Rows) -> Iterator[Tensor]:
    """Rows as tensors on the model's device, a few at a time."""
    count = max(1, CHUNK_TOKENS // (rows.shape[1] - 1))
    for first in range(0, rows.shape[0], count):
        yield torch.from_numpy(rows[first : first + count]).to(model.norm.weight.device)


def _spans(model: GPT, num_tokens: int) -> Iterator[slice]:
    """Slices of positions whose logits fit into a chunk."""
    count = max(1, CHUNK_CELLS // model.vocab_size)
    for first in range(0, num_tokens, count):
        yield slice(first, first + count)
