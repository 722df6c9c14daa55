"""What is read from whole logits: the loss of each position, and the most likely token.

B = batch, T = tokens (or [T, B], everywhere), V_local = this tensor-parallel rank's columns. At
tp > 1 the cross entropy is Megatron-core's. Without tensor parallelism it is torch's, so that
neither a process group nor Megatron is needed; the two agree to fp32 rounding (sums over V are
ordered differently).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecl import dist

NO_TARGET = -1  # target id of a position that is not predicted


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
