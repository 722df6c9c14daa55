"""A memory beside a feed-forward part: a pool of values, of which product keys find a few.

Source: Berges et al. 2024, "Memory layers at scale", https://arxiv.org/abs/2412.09764, and its
public code (facebookresearch/memory); product keys are of Lample et al. 2019,
https://arxiv.org/abs/1907.05242.

A head's query q [K] is compared with two sets of n half keys, and slot (a, b) of the n^2 has the
score q_1 . key_1a + q_2 . key_2b. The r best slots of each head are read: their values, weighted by
a softmax over the r scores, are summed over the heads. With a gate the sum y becomes
W_v (y * silu(W_s x)). The r best of n^2 are among the r x r pairs of the r best halves, so nothing
of size n^2 is ever computed.

Under tensor parallelism every rank has all queries and keys and reads the same slots, and holds
its own features of every value (the split of the public code). A rank's output is its share of a
sum over tp, so its gradients of what all ranks have whole are shares of a sum too.

Differs: the memory stands beside the feed-forward part, where the paper puts it in the place of
one; scores and softmax are in fp32; the gate's matrices have no bias.

N = tokens, W = width, H = heads, K = key width, n = half keys of a set, r = reads of a head.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecl import dist
from sparsecl.sparse.linear import mark_tensor_parallel
from sparsecl.sparse.parallel import summed_gradient


def best_slots(first: Tensor, second: Tensor, reads: int) -> tuple[Tensor, Tensor]:
    """The best of all n^2 sums of one score of each set.

    Args:
        first: [..., n]; slot a * n + b has the score first[a] + second[b].
        second: [..., n].
        reads: r, at most n.

    Returns:
        Scores [..., r], the largest first, and slots int64 [..., r].
    """
    num = first.shape[-1]
    ones, rows = first.topk(reads, dim=-1)
    twos, columns = second.topk(reads, dim=-1)
    sums = (ones.unsqueeze(-1) + twos.unsqueeze(-2)).flatten(-2)
    found, places = sums.topk(reads, dim=-1)
    slots = rows.gather(-1, places // reads) * num + columns.gather(-1, places % reads)
    return found, slots


class ValuePool(nn.Module):
    """The values, which all memories of a model share, and a count of how often each is read."""

    def __init__(self, num_slots: int, width: int) -> None:
        """Allocate this rank's features of every value [n^2, W / tp], uninitialised."""
        super().__init__()
        local = torch.empty(num_slots, width // dist.tp_size())
        self.weight = mark_tensor_parallel(nn.Parameter(local), 1)
        self.armed = False
        # No buffer: a cast of the model to bf16 would take the counts along.
        self.counts = torch.zeros(num_slots, dtype=torch.int64, device=dist.device())

    def arm(self) -> None:
        """From now on count what is read, from zero, until `disarm`. Local."""
        self.armed = True
        self.counts.zero_()

    def disarm(self) -> None:
        """What is read from now on is not counted; the counts stay."""
        self.armed = False

    def num_reads(self) -> Tensor:
        """int64 [n^2] on the CPU, over all dp ranks. Collective over the world."""
        found = dist.all_reduce(self.counts.clone(), group=dist.dp_group())
        # The ranks of tp read the same tokens, and so the same slots: this makes sure of it.
        return dist.all_reduce(found, group=dist.tp_group(), op="max").cpu()

    def forward(self, slots: Tensor, scores: Tensor) -> Tensor:
        """Weighted sums of values: int64 [N, k] and [N, k] -> [N, W / tp]."""
        if self.armed:
            # A pass that activation checkpointing makes again is counted again: shares stay.
            flat = slots.flatten()
            self.counts.scatter_add_(0, flat, torch.ones_like(flat))
        weights = scores.to(self.weight.dtype)
        return F.embedding_bag(slots, self.weight, per_sample_weights=weights, mode="sum")


class ProductKeyMemory(nn.Module):
    """Queries, keys and gate of one feed-forward part, over a pool that others may share."""

    def __init__(
        self, width: int, pool: ValuePool, *, heads: int, keys: int, key_width: int, reads: int
    ) -> None:
        """Allocate, uninitialised; `fill` sets the weights. keys is n and key_width K, even."""
        super().__init__()
        self.width, self.heads, self.reads = width, heads, reads
        self.num_keys, self.half_width = keys, key_width // 2
        self.query = _whole(heads * key_width, width)
        self.bias = _whole(heads * key_width)
        self.keys = _whole(2 * heads * keys, key_width // 2)
        self.register_parameter("gate_in", None)
        self.register_parameter("gate_out", None)
        self.pool = pool
        self.share = summed_gradient

    def add_gate(self) -> None:
        """Before an optimizer has seen the model."""
        local = self.width // dist.tp_size()
        self.gate_in = mark_tensor_parallel(nn.Parameter(torch.empty(local, self.width)), 0)
        self.gate_out = mark_tensor_parallel(nn.Parameter(torch.empty(self.width, local)), 1)

    @torch.no_grad()
    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Set parameters of this module from this rank's shares."""
        for name, value in values.items():
            self.get_parameter(name).copy_(value)

    def find(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Slots int64 [N, H, r] that tokens [N, W] read, and their weights fp32 [N, H, r]."""
        queries = F.linear(x, self.share(self.query), self.share(self.bias))
        queries = queries.view(len(x), self.heads, 2, self.half_width)
        keys = self.share(self.keys).view(self.heads, 2, self.num_keys, self.half_width)
        scores = torch.einsum("nhcd,hckd->cnhk", queries, keys).float()
        found, slots = best_slots(scores[0], scores[1], self.reads)
        return slots, found.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W], whole on every rank -> [..., W], a share of a sum over tp. The backward pass is
        collective over tp."""
        flat = x.reshape(-1, self.width)
        slots, weights = self.find(flat)
        y = self.pool(slots.flatten(1), weights.flatten(1))
        if self.gate_in is not None and self.gate_out is not None:
            y = F.linear(y * F.silu(F.linear(flat, self.gate_in)), self.gate_out)
        elif dist.tp_size() > 1:
            first = dist.tp_rank() * y.shape[1]
            y = F.pad(y, (first, self.width - first - y.shape[1]))
        return y.view(x.shape)


def _whole(*shape: int) -> nn.Parameter:
    return mark_tensor_parallel(nn.Parameter(torch.empty(shape)), -1)
