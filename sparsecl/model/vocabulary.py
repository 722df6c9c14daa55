"""The two vocabulary-parallel ends of the model: embedding, head and cross entropy.

B = batch, T = tokens, W = width, V = padded vocabulary; V_local = V / tp. At tp > 1 the cross
entropy is Megatron-core's. Without tensor parallelism it is torch's, so that neither a process
group nor Megatron is needed; the two agree to fp32 rounding (sums over V are ordered differently).
Tokens [B, T] may be [T, B] everywhere, and are where positions are spread (sparse/parallel.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecl import dist
from sparsecl.model.config import padded_vocabulary
from sparsecl.sparse.linear import mark_tensor_parallel
from sparsecl.sparse.parallel import enter_tensor_parallel, leave_tensor_parallel

NO_TARGET = -1  # target id of a position that is not predicted


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

    def forward(self, input_: Tensor, spread: bool = False) -> Tensor:
        """Embed token ids, or score features. Collective over tp.

        Args:
            input_: int64 [B, T] token ids (equal on all tp ranks), or float [B, T, W] features.
            spread: token ids are [T, B], and features [T / tp, B, W] of this rank's positions.

        Returns:
            [B, T, W] embeddings ([T / tp, B, W] if spread), or fp32 logits of all positions,
            [B, T, V_local] ([T, B, V_local]), with padding at -inf.
        """
        if input_.is_floating_point():
            return self._logits(input_, spread)
        if dist.tp_size() == 1:
            return F.embedding(input_, self.weight)
        # As Megatron's VocabParallelEmbedding, which can scatter what it sums on CUDA only.
        elsewhere = (input_ < self.vocab_start_index) | (input_ >= self.vocab_end_index)
        rows = (input_ - self.vocab_start_index).masked_fill_(elsewhere, 0)
        found = F.embedding(rows, self.weight).masked_fill_(elsewhere.unsqueeze(-1), 0.0)
        return leave_tensor_parallel(found, spread)

    def _logits(self, features: Tensor, spread: bool) -> Tensor:
        logits = F.linear(enter_tensor_parallel(features, spread), self.weight).float()
        # Behind autograd's back on purpose: the softmax of -inf is 0, so the gradient that arrives
        # for these columns is 0 already, and no copy of the logits is spent on saying so.
        logits.detach()[..., self.num_real_local :] = float("-inf")
        return logits


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of each position. Collective over tp. May overwrite `logits`.

    Args:
        logits: fp32 [B, T, V_local].
        targets: int64 [B, T], NO_TARGET where nothing is predicted.

    Returns:
        fp32 [B, T] in nats, 0 where there is no target.
    """
    if dist.tp_size() == 1:
        flat = F.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), ignore_index=NO_TARGET, reduction="none"
        )
        return flat.view(targets.shape)
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy  # seconds: only for tp

    loss = vocab_parallel_cross_entropy(logits, targets)
    return loss.masked_fill(targets == NO_TARGET, 0.0)


@torch.no_grad()
def best_token(logits: Tensor, first_id: int) -> Tensor:
    """The most likely token of each position, the lowest id on a tie. Collective over tp.

    Only one value and one id per position travel, never the logits.

    Args:
        logits: [B, T, V_local].
        first_id: token id of the first local column.

    Returns:
        int64 [B, T], equal on every tp rank.
    """
    best, index = logits.max(dim=-1)  # torch gives the first of equal maxima
    index = index + first_id
    if dist.tp_size() == 1:
        return index
    overall = dist.all_reduce(best.clone(), group=dist.tp_group(), op="max")
    index = index.masked_fill(best < overall, torch.iinfo(index.dtype).max)
    return dist.all_reduce(index, group=dist.tp_group(), op="min")
