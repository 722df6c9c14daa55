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

from sparsecl import dist
from sparsecl.errors import InvariantError
from sparsecl.model.choice import ChoiceConfig, shaped
from sparsecl.model.distribution import chosen, log_sum_exp, sample
from sparsecl.model.gpt import GPT


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
