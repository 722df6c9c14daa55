"""What methods see of a forward pass, and the loss that its rows give."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsecl.methods.context import Batch, Outputs
from sparsecl.model.distribution import (
    chosen,
    divergence,
    log_sum_exp,
    most_likely,
    sample,
    squared_norm,
)
from sparsecl.model.vocabulary import VocabularyEmbedding


@dataclass(frozen=True)
class Logits:
    """fp32 logits [B, T, V_local] of this rank, and which tokens they are of."""

    values: torch.Tensor
    first_id: int
    """Token id of the first column."""

    vocab_size: int
    """Token ids in use."""


@dataclass(frozen=True)
class ForwardOutputs:
    """Implements methods.context.Outputs."""

    losses: torch.Tensor
    """fp32 [B, T], nats; with their graph if logits are kept."""

    kept: Logits | None = None

    @property
    def _kept(self) -> Logits:
        assert self.kept is not None, "a method reads logits and has not said needs_outputs"
        return self.kept

    def select(self, rows: np.ndarray) -> "ForwardOutputs":
        index = torch.from_numpy(rows).to(self.losses.device)
        kept = self.kept
        if kept is not None:
            kept = Logits(kept.values[index], kept.first_id, kept.vocab_size)
        return ForwardOutputs(self.losses[index], kept)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return chosen(self._kept.values, ids, self._kept.first_id)

    @property
    def logsumexp(self) -> torch.Tensor:
        return log_sum_exp(self._kept.values)

    @property
    def squared_norm(self) -> torch.Tensor:
        return squared_norm(self._kept.values)

    def log_probs(self, ids: torch.Tensor) -> torch.Tensor:
        return self.logits(ids) - self.logsumexp[..., None]

    def top(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self._kept
        ids = most_likely(kept.values, min(k, kept.vocab_size), kept.first_id)
        return ids, self.log_probs(ids)

    def draw(self, uniform: torch.Tensor) -> torch.Tensor:
        kept = self._kept
        u = uniform[..., None].to(kept.values.device)
        return sample(kept.values, u, kept.vocab_size)[..., 0]

    def kl(self, teacher: Outputs, tau: float = 1.0) -> torch.Tensor:
        assert isinstance(teacher, ForwardOutputs)
        return divergence(teacher._kept.values, self._kept.values, tau)


def forward(model: Any, tokens: torch.Tensor, *, with_logits: bool) -> ForwardOutputs:
    """Score the tokens of rows int64 [B, context + 1]. Collective over tp, under ZeRO-3 the world.

    Args:
        model: a GPT, or the engine that has one.
    """
    if not with_logits:
        losses, _ = model(tokens[:, :-1], tokens[:, 1:])
        return ForwardOutputs(losses)
    losses, _, values = model(tokens[:, :-1], tokens[:, 1:], with_logits=True)
    embedding: VocabularyEmbedding = getattr(model, "module", model).embedding
    return ForwardOutputs(losses, Logits(values, embedding.vocab_start_index, embedding.vocab_size))


def forward_batch(
    model: Any, tokens: torch.Tensor, batch: Batch, *, with_logits: bool
) -> tuple[ForwardOutputs, torch.Tensor]:
    """Score a micro-batch. Collective as `forward`.

    Returns:
        What methods see of it, and the loss of its rows to go backward from.
    """
    if with_logits:
        outputs = forward(model, tokens, with_logits=True)
        return outputs, weighted_mean(outputs.losses, batch)
    weight = torch.from_numpy(batch.weight).to(tokens.device)
    losses, _, mean = model(tokens[:, :-1], tokens[:, 1:], weight=weight)
    return ForwardOutputs(losses), mean


def weighted_mean(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean over rows of weight * mean loss of the row; losses [B, T]."""
    if batch.plain:
        return losses.mean()
    weight = torch.from_numpy(batch.weight).to(losses.device)
    return (losses.mean(dim=1) * weight).mean()
