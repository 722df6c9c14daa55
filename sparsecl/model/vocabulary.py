"""The two vocabulary-parallel ends of the model: embedding and head.

B = batch, T = tokens, W = width, V = padded vocabulary; V_local = V / tp. Tokens [B, T] may be
[T, B] everywhere, and are where positions are spread (sparse/parallel.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecl import dist
from sparsecl.model.chunked import Asked, score_in_chunks
from sparsecl.model.config import padded_vocabulary
from sparsecl.sparse.linear import mark_tensor_parallel
from sparsecl.sparse.parallel import enter_tensor_parallel, leave_tensor_parallel


class VocabularyEmbedding(nn.Module):
    """Tokens to features and features to logits, by one matrix [V_local, W].

    Both directions are one module because ZeRO-3 gathers a parameter around the forward call of its
    own module: a tied head elsewhere would find an empty tensor. The dtype of the input chooses. A
    head that is not tied is another one of these, which sees features only.
    """

    def __init__(self, vocab_size: int, width: int) -> None:
        """Allocate the slice of this rank, uninitialised.

        Args:
            vocab_size: token ids in use; rows above are padding and never win probability.
        """
        super().__init__()
        rows = padded_vocabulary(vocab_size, dist.tp_size()) // dist.tp_size()
        self.vocab_size = vocab_size
        self.num_embeddings = rows * dist.tp_size()
        self.vocab_start_index = dist.tp_rank() * rows
        self.vocab_end_index = self.vocab_start_index + rows
        # Filled by init.py: the same bits at every tp size.
        self.weight = nn.Parameter(torch.empty(rows, width, dtype=torch.float32))
        mark_tensor_parallel(self.weight, 0)
        # Elements of this rank that are no padding, for whoever changes all weights.
        setattr(self.weight, "num_real", self.num_real_local * width)  # noqa: B010

    @property
    def num_real_local(self) -> int:
        """Rows of this rank that belong to a token; the rest is padding."""
        return min(max(self.vocab_size - self.vocab_start_index, 0), self.weight.shape[0])

    def forward(self, input_: Tensor, spread: bool = False, asked: Asked | None = None) -> Any:
        """Embed token ids, or score features. Collective over tp.

        Args:
            input_: int64 [B, T] token ids (equal on all tp ranks), or float [B, T, W] features.
            spread: token ids are [T, B], and features [T / tp, B, W] of this rank's positions.
            asked: of features: what `score_in_chunks` shall tell, in place of their logits.

        Returns:
            [B, T, W] embeddings ([T / tp, B, W] if spread), or fp32 logits of all positions,
            [B, T, V_local] ([T, B, V_local]), with padding at -inf; or what is asked.
        """
        if input_.is_floating_point():
            features = enter_tensor_parallel(input_, spread)
            return self._logits(features) if asked is None else self._scores(features, asked)
        if dist.tp_size() == 1:
            return F.embedding(input_, self.weight)
        # As Megatron's VocabParallelEmbedding, which can scatter what it sums on CUDA only.
        elsewhere = (input_ < self.vocab_start_index) | (input_ >= self.vocab_end_index)
        rows = (input_ - self.vocab_start_index).masked_fill_(elsewhere, 0)
        found = F.embedding(rows, self.weight).masked_fill_(elsewhere.unsqueeze(-1), 0.0)
        return leave_tensor_parallel(found, spread)

    def _scores(self, features: Tensor, asked: Asked) -> tuple[Tensor | None, ...]:
        return score_in_chunks(
            features,
            self.weight,
            asked,
            first_id=self.vocab_start_index,
            num_real=self.num_real_local,
        )

    def _logits(self, features: Tensor) -> Tensor:
        logits = F.linear(features, self.weight).float()
        # Behind autograd's back on purpose: the softmax of -inf is 0, so the gradient that arrives
        # for these columns is 0 already, and no copy of the logits is spent on saying so.
        logits.detach()[..., self.num_real_local :] = float("-inf")
        return logits
