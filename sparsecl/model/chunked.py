"""Head and cross entropy in chunks of tokens: the logits of all tokens never exist at once.

N = tokens, W = width, V_local = rows of the head on this tensor-parallel rank. The logits of a
chunk are made and scored, and the gradients of features and head are taken while they are there. So
the backward pass makes no product again, and only multiplies by the gradient of the one number that
it begins from: the sum of losses with weights that are given before.

Over tp there is one collective a chunk: each rank hands on its largest logit, its sum of
exponentials and the target's logit, from which every rank makes the same whole (online softmax,
Milakov & Gimelshein 2018, https://arxiv.org/abs/1805.02867).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsecl import dist
from sparsecl.model.entropy import NO_TARGET, best_token


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of the head beside its logits. Tokens as in `score_in_chunks`."""

    targets: Tensor
    """int64 [...], NO_TARGET where nothing is predicted."""

    weight: Tensor | None
    """fp32 [...], what multiplies each loss in the sum to go backward from; None = no sum."""

    answers: bool
    """Tell where the most likely token is the target."""

    chunk: int
    """Tokens of a chunk; at least 1."""


@dataclass(frozen=True)
class _Rows:
    """The part of the vocabulary that a rank has: ids from `first` on, `real` of them in use."""

    first: int
    real: int


def score_in_chunks(
    features: Tensor, head: Tensor, asked: Asked, *, first_id: int, num_real: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Score each next token. Collective over tp; the backward pass is local, and runs once.

    Args:
        features: [..., W], whole on every tp rank. Its gradient is this rank's share of a sum.
        head: [V_local, W], of the same dtype.
        first_id: token id of the first row.
        num_real: rows that belong to a token; those behind them win no probability.

    Returns:
        Losses fp32 [...] in nats without a graph, 0 where there is no target; bool [...] answers,
        if asked for; the weighted sum of losses, fp32 [], if weights are given.
    """
    shape = asked.targets.shape
    x, targets, rows = features.flatten(0, -2), asked.targets.flatten(), _Rows(first_id, num_real)
    if asked.weight is None:
        with torch.no_grad():
            losses, correct = _Pass(x, head, targets, rows, asked).run()
        total = None
    else:
        weight = asked.weight.flatten().masked_fill(targets == NO_TARGET, 0.0)
        goes_back = torch.is_grad_enabled()
        found: Any = _WeightedSum.apply(x, head, targets, weight, rows, asked, goes_back)
        total, losses, correct = found
    return losses.view(shape), None if correct is None else correct.view(shape), total


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        head: Tensor,
        targets: Tensor,
        weight: Tensor,
        rows: _Rows,
        asked: Asked,
        goes_back: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        one_pass = _Pass(x, head, targets, rows, asked)
        if goes_back:
            one_pass.keep_gradients(weight, *ctx.needs_input_grad[:2])
        losses, correct = one_pass.run()
        ctx.gradients, ctx.dtype = (one_pass.dx, one_pass.dhead), head.dtype
        ctx.mark_non_differentiable(losses, *(() if correct is None else (correct,)))
        return (losses * weight).sum(), losses, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        assert ctx.gradients is not None, "a loss in chunks goes backward once"
        (dx, dhead), ctx.gradients = ctx.gradients, None
        scale = grad_outputs[0]
        # The head's is a sum in fp32 up to here, where fp16's loss scale says whether it overflows.
        dx = None if dx is None else dx.mul_(scale)
        dhead = None if dhead is None else dhead.mul_(scale).to(ctx.dtype)
        return dx, dhead, None, None, None, None, None


class _Pass:
    """All chunks of N tokens, one after the other, in the same buffers."""

    def __init__(self, x: Tensor, head: Tensor, targets: Tensor, rows: _Rows, asked: Asked) -> None:
        self.x, self.head, self.targets, self.rows, self.asked = x, head, targets, rows, asked
        self.weight: Tensor | None = None
        self.dx: Tensor | None = None
        self.dhead: Tensor | None = None

    def keep_gradients(self, weight: Tensor, of_features: bool, of_head: bool) -> None:
        """Take the gradients of the sum of losses times weight [N]."""
        self.weight = weight
        if of_features:
            self.dx = torch.empty_like(self.x)
        if of_head:
            self.dhead = torch.zeros_like(self.head, dtype=torch.float32)

    def run(self) -> tuple[Tensor, Tensor | None]:
        """Losses fp32 [N] and, if asked for, answers bool [N]. Collective over tp."""
        num_tokens, size = len(self.x), min(self.asked.chunk, len(self.x))
        losses = self.x.new_empty(num_tokens, dtype=torch.float32)
        correct = self.x.new_empty(num_tokens, dtype=torch.bool) if self.asked.answers else None
        # Logits, and their softmax.
        buffers = self.x.new_empty(2, size, len(self.head), dtype=torch.float32)
        for begin in range(0, num_tokens, size):
            here = slice(begin, min(begin + size, num_tokens))
            logits, softmax = buffers[:, : here.stop - begin]
            self._fill(logits, here)
            if correct is not None:
                correct[here] = best_token(logits, self.rows.first) == self.targets[here]
            losses[here] = self._losses(here, logits, softmax)
        return losses, correct

    def _fill(self, logits: Tensor, here: slice) -> None:
        x = self.x[here]
        if x.dtype == logits.dtype:
            torch.mm(x, self.head.t(), out=logits)
        else:
            logits.copy_(torch.mm(x, self.head.t()))
        logits[:, self.rows.real :] = -torch.inf

    def _losses(self, here: slice, logits: Tensor, softmax: Tensor) -> Tensor:
        """The losses of a chunk, [n]; its gradients are taken, if they are kept."""
        targets = self.targets[here]
        column = targets - self.rows.first
        elsewhere = (column < 0) | (column >= logits.shape[1])
        column = column.masked_fill(elsewhere, 0)
        target = logits.gather(1, column[:, None])[:, 0].masked_fill(elsewhere, 0.0)
        largest, total = self._softmax(logits, softmax)
        parts = _over_ranks(torch.stack([largest, total, target]))
        overall = parts[:, 0].amax(dim=0)
        sums = parts[:, 1] * (parts[:, 0] - overall).exp_()
        whole = sums.sum(dim=0)
        losses = whole.log().add_(overall).sub_(parts[:, 2].sum(dim=0))
        if self.weight is not None:
            weight = self.weight[here]
            share = sums[dist.tp_rank()] / whole  # of this rank's rows in the whole softmax
            softmax.mul_((share * weight)[:, None])
            index = torch.arange(len(targets), device=targets.device)
            softmax[index, column] -= weight.masked_fill(elsewhere, 0.0)
            self._gradients(here, softmax)
        return losses.masked_fill_(targets == NO_TARGET, 0.0)

    def _softmax(self, logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Over the columns of this rank; the largest logit, and the sum of exponentials above it,
        each [n]."""
        if self.rows.real == 0:  # a rank may hold padding only
            out.zero_()
            zero = logits.new_zeros(len(logits))
            return zero + torch.finfo(logits.dtype).min, zero
        torch.softmax(logits, dim=1, out=out)
        return logits.amax(dim=1), out.amax(dim=1).reciprocal_()

    def _gradients(self, here: slice, of_logits: Tensor) -> None:
        """Of the features of a chunk, and what it adds to that of the head."""
        gradient = of_logits.to(self.x.dtype)
        if self.dx is not None:
            torch.mm(gradient, self.head, out=self.dx[here])
        if self.dhead is None:
            return
        if gradient.dtype == self.dhead.dtype:
            self.dhead.addmm_(gradient.t(), self.x[here])
        else:
            self.dhead.add_(torch.mm(gradient.t(), self.x[here]))


def _over_ranks(parts: Tensor) -> Tensor:
    """[3, n] of every tp rank, [tp, 3, n]. Collective over tp."""
    if dist.tp_size() == 1:
        return parts[None]
    found = parts.new_empty(dist.tp_size(), *parts.shape)
    torch_dist.all_gather_into_tensor(found, parts[None], group=dist.tp_group())
    return found
