"""Text from a model, one token after the other.

V = padded vocabulary; V_local = V / tp.

One sequence at a time, so its text does not depend on how many others are asked for: a batch of
another size would round differently. Every token costs a forward pass over the whole text before
it. A cache of keys and values would make that cheaper, but not once the text is longer than the
context: positions are learned, so all features change when the window moves. Contexts here are
short.

Token t of a text is drawn with the number u_t in [0, 1) that is given (distribution.sample), at
every tp size: another layout rounds otherwise, which moves a token only if u lies within that
rounding of a border between two tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsecl import dist, watchdog
from sparsecl.errors import InvariantError
from sparsecl.model.choice import ChoiceConfig, shaped
from sparsecl.model.distribution import chosen, log_sum_exp, sample
from sparsecl.model.gpt import GPT

ROWS_AT_ONCE = 16
"""Sequences of one forward pass of `sample_rows`: a batch of another size rounds differently."""


@dataclass(frozen=True)
class Generated:
    """What follows a prompt."""

    tokens: tuple[int, ...]
    """With the end-of-text that ended it, if one did."""

    log_probs: tuple[float, ...]
    """Of each token under the model itself (temperature 1, all tokens), in nats: minus its loss."""


@torch.no_grad()
def generate(
    model: GPT,
    prompt: Sequence[int],
    uniform: NDArray[np.float64],
    choice: ChoiceConfig,
    *,
    end: int | None = None,
) -> Generated:
    """Tokens that follow a prompt. Collective over tp: all ranks pass the same.

    The model sees the last tokens that its context holds.

    Args:
        model: in eval mode.
        prompt: token ids, at least one.
        uniform: [n] in [0, 1), one for each token that is asked for.
        end: a token that ends the text.

    Raises:
        InvariantError: on all ranks, if a logit is not finite.
    """
    assert prompt and not model.training
    device = model.embedding.weight.device
    seen = list(prompt)
    log_probs: list[float] = []
    for u in uniform.tolist():
        window = torch.tensor([seen[-model.shape.context :]], device=device)
        logits = model.scores(model.features(window)[:, -1:])
        token = _choose(model, logits, u, choice)
        first_id = model.embedding.vocab_start_index
        found = chosen(logits, token[..., None], first_id)[..., 0] - log_sum_exp(logits)
        log_probs.append(min(found.item(), 0.0))  # rounding can end above it
        seen.append(int(token.item()))
        if seen[-1] == end:
            break
    return Generated(tuple(seen[len(prompt) :]), tuple(log_probs))


@torch.no_grad()
def sample_rows(
    model: GPT, prompts: NDArray[np.int64], uniform: NDArray[np.float64], temperature: float
) -> NDArray[np.int64]:
    """Prompts and what a model writes after them, int64 [n, p + T], the same on all ranks.
    Collective over the world: dp ranks share the work, ROWS_AT_ONCE sequences at a time, so the
    bits do not depend on how many they are.

    An end-of-text does not end a sequence: the next document follows, as in training text.

    Args:
        model: in eval mode, and free of ZeRO: dp ranks call it on their own.
        prompts: token ids [n, p], p >= 1.
        uniform: [n, T] in [0, 1), one for each token; p + T - 1 at most the model's context.
        temperature: > 0; logits are divided by it.

    Raises:
        InvariantError: on all ranks, if a logit is not finite.
    """
    device = model.embedding.weight.device
    begun, numbers = torch.from_numpy(prompts).to(device), torch.from_numpy(uniform).to(device)
    found = begun.new_zeros(len(begun), begun.shape[1] + numbers.shape[1])
    bad = torch.zeros(1, device=device)
    for chunk, begin in enumerate(range(0, len(begun), ROWS_AT_ONCE)):
        if chunk % dist.dp_size() == dist.dp_rank() and not bad:
            some = slice(begin, begin + ROWS_AT_ONCE)
            rows = _write(model, begun[some], numbers[some], temperature)
            if rows is None:
                bad += 1.0
            else:
                found[some] = rows
    if float(dist.all_reduce(bad, op="max")):
        raise InvariantError("a logit of the model is not finite: nothing can be drawn from it")
    # One rank has a sequence, the others zeros: the sum is exact.
    return dist.all_reduce(found, group=dist.dp_group()).cpu().numpy()


def _write(model: GPT, seen: Tensor, uniform: Tensor, temperature: float) -> Tensor | None:
    """int64 [n, p + T] after prompts [n, p], by numbers [n, T]; None if a logit is not finite.
    Collective over tp."""
    for u in uniform.T:
        watchdog.beat(f"text of the model, token {seen.shape[1]}")
        logits = model.scores(model.features(seen)[:, -1:]) / temperature
        if not log_sum_exp(logits).isfinite().all():
            return None
        token = sample(logits, u[:, None, None], model.vocab_size)[..., 0]
        seen = torch.cat([seen, token], dim=1)
    return seen


def _choose(model: GPT, logits: Tensor, u: float, choice: ChoiceConfig) -> Tensor:
    """A token int64 [1, 1], the same on all tp ranks, from logits [1, 1, V_local]."""
    # Which tokens stay is decided on all of them, by every rank for itself from the same bits.
    real = _whole(logits.reshape(-1))[: model.vocab_size]
    if not real.isfinite().all():
        raise InvariantError("a logit of the model is not finite: nothing can be drawn from it")
    kept = torch.full((logits.shape[-1] * dist.tp_size(),), -torch.inf, dtype=torch.float64)
    kept[: model.vocab_size] = torch.from_numpy(shaped(real.cpu().numpy(), choice))
    own = kept.chunk(dist.tp_size())[dist.tp_rank()].to(logits.device).view(logits.shape)
    uniform = torch.tensor([[[u]]], dtype=torch.float64, device=logits.device)
    return sample(own, uniform, model.vocab_size)[..., 0]


def _whole(logits: Tensor) -> Tensor:
    """Logits [V] of all tp ranks, from those [V_local] of this one."""
    if dist.tp_size() == 1:
        return logits
    places = logits.new_zeros(dist.tp_size(), len(logits))
    places[dist.tp_rank()] = logits
    # A sum with zeros is exact; gloo and nccl have it whatever the layout of the ranks.
    return dist.all_reduce(places, group=dist.tp_group()).flatten()
