"""The distribution over the vocabulary of each position, from logits that lie split over tp.

B = batch, T = tokens, V = padded vocabulary; V_local = V / tp. Every function takes the fp32 logits
[B, T, V_local] of this rank, padding at -inf, and gives the same on all ranks of the tp group, as
one process would: what is added over ranks is added going forward alone, and going backward each
rank finds the gradient of its own columns. Padding has probability 0 and gradient 0.

No function keeps a tensor of the logits' size for its backward pass, other than the logits.
"""

from typing import Any

import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.sparse.parallel import reduce_from_tensor_parallel

_LOW = (1 << 32) - 1

# Weight of the most likely token where tokens are drawn: what is less likely by a factor of 2^40 is
# never drawn, and the sum over two million tokens fits into 64 bits.
_WHOLE = float(1 << 40)


def log_sum_exp(logits: Tensor) -> Tensor:
    """log sum_v exp(logits_v), fp32 [B, T]. Collective over tp."""
    return _LogSumExp.apply(logits)  # pyright: ignore[reportReturnType]


def squared_norm(logits: Tensor) -> Tensor:
    """sum_v logits_v^2 over the token ids in use, fp32 [B, T]. Collective over tp."""
    return _SquaredNorm.apply(logits)  # pyright: ignore[reportReturnType]


def chosen(logits: Tensor, ids: Tensor, first_id: int) -> Tensor:
    """The logits of some tokens, [B, T, k]. Collective over tp.

    Args:
        ids: int64 [B, T, k] in the vocabulary, the same on all tp ranks.
        first_id: token id of the first local column.
    """
    local = ids - first_id
    elsewhere = (local < 0) | (local >= logits.shape[-1])
    found = logits.gather(-1, local.clamp(0, logits.shape[-1] - 1))
    return reduce_from_tensor_parallel(found.masked_fill(elsewhere, 0.0))


@torch.no_grad()
def most_likely(logits: Tensor, k: int, first_id: int) -> Tensor:
    """Ids of the k largest logits, largest first, the lower id on a tie. Collective over tp.

    Args:
        k: at most the token ids in use; padding would come last.
        first_id: token id of the first local column.

    Returns:
        int64 [B, T, k], the same on every tp rank.
    """
    num_local = min(k, logits.shape[-1])
    keys = torch.empty(*logits.shape[:-1], num_local, dtype=torch.int64, device=logits.device)
    # One sequence at a time: the keys of all tokens take twice the memory of their logits.
    for row, best in zip(logits, keys, strict=True):
        best.copy_(_keys(row, first_id).topk(num_local, dim=-1).values)
    return _LOW - (_over_ranks(keys).topk(k, dim=-1).values & _LOW)


@torch.no_grad()
def sample(logits: Tensor, uniform: Tensor, vocab_size: int) -> Tensor:
    """Tokens drawn from each position's own distribution. Collective over tp.

    Draw u is the first token at which the summed probability passes u. So the tokens follow from
    the distribution and the numbers given, at every tp size: another layout rounds otherwise, which
    moves a draw only if u lies within that rounding of a border between two tokens.

    Args:
        uniform: fp64 [B, T, k] in [0, 1), the same on all tp ranks.
        vocab_size: token ids in use.

    Returns:
        int64 [B, T, k], the same on every tp rank.
    """
    below = torch.empty(uniform.shape, dtype=torch.int64, device=logits.device)
    largest = _largest(logits)
    # One sequence at a time: 64 bits for each logit of all tokens take twice the memory of theirs.
    for row, top, u, count in zip(logits, largest, uniform, below, strict=True):
        # Whole numbers, whose sums are exact in any order: CUDA has no other repeatable cumsum.
        weights = (row.double() - top.double()[:, None]).exp_().mul_(_WHOLE).long()
        upto = weights.cumsum(dim=-1)
        masses = upto.new_zeros(dist.tp_size(), len(row))
        masses[dist.tp_rank()] = upto[:, -1]
        masses = _sum_over_ranks(masses)
        total, lower = masses.sum(dim=0), masses[: dist.tp_rank()].sum(dim=0)
        wanted = (u * total[:, None]).long() - lower[:, None]
        # Columns of this rank that lie below u; the sum over ranks is the token's id.
        count.copy_(torch.searchsorted(upto, wanted, right=True))
    return _sum_over_ranks(below).clamp_(max=vocab_size - 1)  # if rounding has gone past the last


def divergence(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """KL(teacher || student) of the distributions at temperature tau, [B, T]. Collective over tp.

    There is no factor of tau squared. The teacher has no gradient.
    """
    return _Divergence.apply(teacher.detach(), student, tau)  # pyright: ignore[reportReturnType]


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        total = _log_sum_exp(logits)
        ctx.save_for_backward(logits, total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        logits, total = ctx.saved_tensors
        return torch.sub(logits, total[..., None]).exp_().mul_(grad_outputs[0][..., None])


class _SquaredNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return _sum_over_ranks(_without_padding(logits).square_().sum(dim=-1))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        return _without_padding(logits).mul_(2.0 * grad_outputs[0][..., None])


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, tau: float) -> Tensor:
        totals = _log_sum_exp(teacher / tau), _log_sum_exp(student / tau)
        ctx.save_for_backward(teacher, student, *totals)
        ctx.tau = tau
        log_p = (teacher / tau).sub_(totals[0][..., None])
        p = log_p.exp()
        terms = log_p.sub_(student / tau).add_(totals[1][..., None]).mul_(p)
        # 0 log 0 = 0; in padding it would be inf - inf.
        return _sum_over_ranks(terms.masked_fill_(p == 0.0, 0.0).sum(dim=-1))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        teacher, student, *totals = ctx.saved_tensors
        p, q = (
            (logits / ctx.tau).sub_(total[..., None]).exp_()
            for logits, total in zip((teacher, student), totals, strict=True)
        )
        return None, q.sub_(p).mul_(grad_outputs[0][..., None] / ctx.tau), None


def _without_padding(logits: Tensor) -> Tensor:
    """A copy with 0 at -inf."""
    return logits.masked_fill(logits == -torch.inf, 0.0)


def _log_sum_exp(logits: Tensor) -> Tensor:
    largest = _largest(logits)
    total = _sum_over_ranks(torch.sub(logits, largest[..., None]).exp_().sum(dim=-1))
    return total.log_().add_(largest)


def _largest(logits: Tensor) -> Tensor:
    largest = logits.amax(dim=-1)
    if dist.tp_size() == 1:
        return largest
    return dist.all_reduce(largest, group=dist.tp_group(), op="max")  # a rank may hold padding only


def _sum_over_ranks(x: Tensor) -> Tensor:
    return x if dist.tp_size() == 1 else dist.all_reduce(x.contiguous(), group=dist.tp_group())


def _keys(logits: Tensor, first_id: int) -> Tensor:
    """int64 [T, V_local] whose order is that of logits, the lower id above on a tie. The lower half
    of a key says the id."""
    # Read as integers, floats of one sign are in order; negative ones in reverse.
    bits = logits.contiguous().view(torch.int32)
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    ids = torch.arange(first_id, first_id + logits.shape[-1], device=logits.device)
    return (order << 32) + (_LOW - ids)


def _over_ranks(keys: Tensor) -> Tensor:
    """The keys of all tp ranks, [B, T, tp * k]."""
    if dist.tp_size() == 1:
        return keys
    places = keys.new_zeros(dist.tp_size(), *keys.shape)
    places[dist.tp_rank()] = keys
    # A sum with zeros: gloo and nccl have it for integers, whatever the layout of the ranks.
    dist.all_reduce(places, group=dist.tp_group())
    return places.permute(1, 2, 0, 3).flatten(2)
