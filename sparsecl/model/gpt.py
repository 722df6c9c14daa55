"""GPT on a topology: pre-norm blocks, GELU, learned positions, tied embedding, no biases.

B = batch, T = tokens, W = width, H = heads and D = head width; `_local` = this tensor-parallel
rank's share. Where it says "spread", features between the linears are [T / tp, B, W], of this
rank's positions, in place of [B, T, W] of all (sparse/parallel.py).

After nanoGPT (https://github.com/karpathy/nanoGPT). Differs: q, k and v are separate matrices (a
topology is drawn for each), the linears may be sparse, and there is no dropout, which would be a
hidden regulariser in a study of forgetting.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsecl import dist
from sparsecl.model.config import ModelShape, check_tensor_parallel
from sparsecl.model.shapes import block_shapes
from sparsecl.model.vocabulary import NO_TARGET, VocabularyEmbedding, best_token, cross_entropy
from sparsecl.sparse.backends import DEFAULT, LinearOptions
from sparsecl.sparse.linear import (
    ColumnParallelSparseLinear,
    RowParallelSparseLinear,
    SparseLinear,
    mark_tensor_parallel,
)
from sparsecl.sparse.parallel import (
    enter_tensor_parallel,
    spread_positions,
    summed_gradient,
)
from sparsecl.sparse.units import UnitGroup
from sparsecl.topology.layer import LayerShape, LayerTopology


class Attention(nn.Module):
    """Causal self-attention; heads are split over tp."""

    def __init__(self, linears: Mapping[str, SparseLinear], head_width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (linears[kind] for kind in ("q", "k", "v", "o"))
        self.head_width = head_width
        self.enter = enter_tensor_parallel

    def forward(self, x: Tensor, spread: bool = False) -> Tensor:
        """[B, T, W] -> [B, T, W], or spread. Collective over tp."""
        x = self.q.arrange(self.enter(x, spread))  # once for the three readers
        # [B, T, W_local] -> [B, H_local, T, D]; if spread, from [T, B, W_local].
        q, k, v = (
            _heads_first(linear(x).unflatten(-1, (-1, self.head_width)), spread)
            for linear in (self.q, self.k, self.v)
        )
        # A flag and no mask tensor: only then may torch take its flash kernels (in bf16 and fp16).
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.permute(2, 0, 1, 3) if spread else y.transpose(1, 2)
        return self.o(y.flatten(2), spread)


class Mlp(nn.Module):
    """Two linears with a GELU between; hidden units are split over tp."""

    def __init__(self, linears: Mapping[str, SparseLinear]) -> None:
        super().__init__()
        self.up, self.down = linears["up"], linears["down"]
        self.enter = enter_tensor_parallel
        self.units: UnitGroup | None = None

    def forward(self, x: Tensor, spread: bool = False) -> Tensor:
        """[B, T, W] -> [B, T, W], or spread. Collective over tp."""
        h = F.gelu(self.up(self.enter(x, spread)))
        return self.down(h if self.units is None else self.units(h), spread)


class Norm(nn.LayerNorm):
    """LayerNorm with a gain and no bias, whole on every tp rank."""

    def __init__(self, width: int) -> None:
        super().__init__(width, bias=False)
        mark_tensor_parallel(self.weight, -1)
        self.share = summed_gradient

    def forward(self, input: Tensor, spread: bool = False) -> Tensor:
        """[..., W] -> [..., W]; the backward pass is collective over tp if spread."""
        gain = self.share(self.weight) if spread else self.weight
        return F.layer_norm(input, self.normalized_shape, gain, None, self.eps)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, linears: Mapping[str, SparseLinear], shape: ModelShape) -> None:
        super().__init__()
        self.norm1 = Norm(shape.width)
        self.attention = Attention(linears, shape.head_width)
        self.norm2 = Norm(shape.width)
        self.mlp = Mlp(linears)

    def forward(self, x: Tensor, spread: bool = False) -> Tensor:
        """[B, T, W] -> [B, T, W], or spread. Collective over tp."""
        x = x + self.attention(self.norm1(x, spread), spread)
        return x + self.mlp(self.norm2(x, spread), spread)


class Positions(nn.Module):
    """Learned position features [context, W]."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.weight = mark_tensor_parallel(nn.Parameter(torch.empty(context, width)), -1)

    def forward(self, tokens: Tensor, spread: bool = False) -> Tensor:
        """Features [T, W] of the positions of tokens [B, T]; if spread, [T / tp, 1, W] of this
        rank's positions of tokens [T, B], and the backward pass is collective over tp."""
        places = torch.arange(tokens.shape[0 if spread else 1], device=tokens.device)
        # A lookup, not a slice: the result must not be a view of the parameter, because ZeRO-3
        # frees the gathered parameter when this module returns.
        features = F.embedding(places, self.weight)
        return spread_positions(features).unsqueeze(1) if spread else features


class GPT(nn.Module):
    """A language model. Weights are uninitialised until `initialize` of init.py has run.

    Parameter names: embedding.weight, positions.weight, norm.weight, and in layers.{i}:
    norm1.weight, attention.{q,k,v,o}.weight, norm2.weight, mlp.{up,down}.weight.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        vocab_size: int,
        topologies: Mapping[str, LayerTopology],
        options: Mapping[str, LinearOptions] | None = None,
        activation_checkpointing: bool = False,
        sequence: bool = False,
    ) -> None:
        """Allocate this rank's share, on the CPU in fp32.

        Args:
            vocab_size: token ids in use; the embedding is padded above it.
            topologies: by layer name; a layer that is not named is dense.
            options: storage and backend by layer name; the default for one that is not named.
            sequence: spread positions over tp ranks between the linears (parallel.sequence).

        Raises:
            UserError: if the tensor-parallel size does not divide heads or hidden units (with
                `sequence`, the context), or a backend does not fit its topology.
        """
        super().__init__()
        check_tensor_parallel(shape, dist.tp_size(), sequence=sequence)
        self.shape = shape
        self.vocab_size = vocab_size
        self.activation_checkpointing = activation_checkpointing
        self.sequence = sequence
        self.embedding = VocabularyEmbedding(vocab_size, shape.width)
        self.positions = Positions(shape.context, shape.width)
        self.layers = nn.ModuleList(
            Block(block_linears(shape, index, topologies, options or {}), shape)
            for index in range(shape.layers)
        )
        self.norm = Norm(shape.width)

    def forward(
        self, tokens: Tensor, targets: Tensor, *, with_logits: bool = False
    ) -> tuple[Tensor | None, ...]:
        """Score each next token. Collective over tp: all ranks pass the same tokens.

        Args:
            tokens: int64 [B, T], T at most the context.
            targets: int64 [B, T], the token that follows each position; -1 = no target.
            with_logits: give the logits too, which takes another 4 bytes for each of them until
                the backward pass.

        Returns:
            Loss fp32 [B, T] in nats, 0 where there is no target; and, in eval mode only (None in
            training), bool [B, T]: the most likely token is the target. With logits also fp32
            [B, T, V_local], padding at -inf. They leave through here and not by the side, so that
            ZeRO-3 sees a backward pass begin that begins from them.
        """
        assert tokens.shape[1] <= self.shape.context, (tokens.shape, self.shape.context)
        if not self._spreads(tokens):
            return self._score(tokens, targets, with_logits)
        # Position first, as spread features lie.
        found = self._score(tokens.t(), targets.t().contiguous(), with_logits, spread=True)
        return tuple(None if part is None else part.transpose(0, 1) for part in found)

    def features(self, tokens: Tensor, spread: bool = False) -> Tensor:
        """Normed features of the last layer. Collective over tp.

        Args:
            tokens: int64 [B, T]; [T, B] with T divisible by tp if spread.

        Returns:
            [B, T, W], or [T / tp, B, W] of this rank's positions if spread.
        """
        x = self.embedding(tokens, spread) + self.positions(tokens, spread)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for layer in self.layers:
            if recompute:
                # Nothing random happens in a block, so the generator need not be saved.
                x = checkpoint(layer, x, spread, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, spread)
        return self.norm(x, spread)

    def _spreads(self, tokens: Tensor) -> bool:
        """Positions are spread in this pass. The same on all ranks of the tp group.

        Only in a pass that goes backward: another keeps no activations that a rank could be spared,
        and whoever looks into the model there (probes, analysis) finds all positions. Its texts may
        also be of any length.
        """
        divides = tokens.shape[1] % dist.tp_size() == 0
        return self.sequence and dist.tp_size() > 1 and divides and torch.is_grad_enabled()

    def _score(
        self, tokens: Tensor, targets: Tensor, with_logits: bool, *, spread: bool = False
    ) -> tuple[Tensor | None, ...]:
        """See `forward`; all are [T, B] if spread."""
        logits = self.embedding(self.features(tokens, spread), spread)
        correct = None
        if not self.training:
            # Before the loss, which may overwrite the logits.
            best = best_token(logits, self.embedding.vocab_start_index)
            correct = (best == targets) & (targets != NO_TARGET)
        if not with_logits:
            return cross_entropy(logits, targets), correct
        # Over tp the loss is computed in the place of its logits.
        own = logits.clone() if dist.tp_size() > 1 else logits
        return cross_entropy(own, targets), correct, logits


def _heads_first(x: Tensor, spread: bool) -> Tensor:
    """[B, T, H, D], or [T, B, H, D] if spread, -> [B, H, T, D], a view."""
    return x.permute(1, 2, 0, 3) if spread else x.transpose(1, 2)


def block_linears(
    shape: ModelShape,
    index: int,
    topologies: Mapping[str, LayerTopology],
    options: Mapping[str, LinearOptions],
) -> dict[str, SparseLinear]:
    """The six linears of block `index` by kind, this rank's slices."""
    return {
        layer.kind: make_linear(
            layer,
            topologies.get(layer.name),
            options.get(layer.name, DEFAULT),
            tp_rank=dist.tp_rank(),
            tp_size=dist.tp_size(),
        )
        for layer in block_shapes(shape, index)
    }


def make_linear(
    layer: LayerShape,
    topology: LayerTopology | None,
    options: LinearOptions,
    *,
    tp_rank: int,
    tp_size: int,
) -> SparseLinear:
    """One linear of a block: a slice of it, for a tp rank."""
    split = (ColumnParallelSparseLinear, RowParallelSparseLinear)[split_dim(layer)]
    return split(layer, topology, tp_rank=tp_rank, tp_size=tp_size, options=options)


def split_dim(layer: LayerShape) -> int:
    """The dim of the matrix that tp splits. Row-parallel (1) closes what column-parallel (0) opens:
    one all-reduce for each pair."""
    return 1 if layer.kind in ("o", "down") else 0
