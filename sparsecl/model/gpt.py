"""GPT on a topology: pre-norm blocks, in one of the forms of model/README.md.

B = batch, T = tokens, W = width, H = heads (KV of keys and values) and D = head width; `_local` =
this tensor-parallel rank's share. Where it says "spread", features between the linears are
[T / tp, B, W], of this rank's positions, in place of [B, T, W] of all (sparse/parallel.py).

After nanoGPT (https://github.com/karpathy/nanoGPT). Differs: q, k and v are separate matrices (a
topology is drawn for each), the linears may be sparse, and there is no dropout unless a method asks
for it: it would be a hidden regulariser in a study of forgetting.
"""

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecl import dist
from sparsecl.model import columns
from sparsecl.model.attention import causal_attention
from sparsecl.model.chunked import Asked
from sparsecl.model.columns import Columns, Heard, Lateral
from sparsecl.model.config import ModelShape, check_tensor_parallel, loss_chunk
from sparsecl.model.entropy import NO_TARGET, best_token, cross_entropy
from sparsecl.model.rotary import Rotary, rotate
from sparsecl.model.shapes import block_shapes
from sparsecl.model.vocabulary import VocabularyEmbedding
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
    """Causal self-attention; heads are split over tp. A head of keys and values serves H / KV
    consecutive heads of queries (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245)."""

    def __init__(self, linears: Mapping[str, SparseLinear], head_width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (linears[kind] for kind in ("q", "k", "v", "o"))
        self.head_width = head_width
        self.enter = enter_tensor_parallel

    def forward(self, x: Tensor, spread: bool = False, angles: Tensor | None = None) -> Tensor:
        """[B, T, W] -> [B, T, W], or spread. Collective over tp.

        Args:
            angles: of all positions, from `Rotary`; None = x knows its positions.
        """
        x = self.q.arrange(self.enter(x, spread))  # once for the three readers
        # [B, T, W_local] -> [B, H_local, T, D]; if spread, from [T, B, W_local].
        q, k, v = (
            _heads_first(linear(x).unflatten(-1, (-1, self.head_width)), spread)
            for linear in (self.q, self.k, self.v)
        )
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        y = causal_attention(q, k, v)
        y = y.permute(2, 0, 1, 3) if spread else y.transpose(1, 2)
        return self.o(y.flatten(2), spread)


class Mlp(nn.Module):
    """Hidden units between two linears, gelu(up x), or silu(gate x) * up x (SwiGLU, Shazeer 2020,
    https://arxiv.org/abs/2002.05202); they are split over tp."""

    gate: SparseLinear | None

    def __init__(self, linears: Mapping[str, SparseLinear], *, gelu: str) -> None:
        """Take the linears; gelu: torch's `approximate`, of a form that is not gated."""
        super().__init__()
        self.gate, self.up, self.down = linears.get("gate"), linears["up"], linears["down"]
        self.gelu = gelu
        self.enter = enter_tensor_parallel
        self.units: UnitGroup | None = None
        self.parts: nn.ModuleDict | None = None
        self.beside = sum_of_parts
        self.lateral: Lateral | None = None
        """What it hears of earlier columns."""

    def forward(self, x: Tensor, spread: bool = False, heard: Heard = ()) -> Tensor:
        """[B, T, W] -> [B, T, W], or spread. Collective over tp."""
        return self.with_hidden(x, spread, heard)[0]

    def with_hidden(self, x: Tensor, spread: bool, heard: Heard) -> tuple[Tensor, Tensor]:
        """The same, and its hidden units [B, T, M_local] of all positions."""
        x = self.enter(x, spread)
        more = None if self.parts is None else self.beside(self.parts, x)
        if self.gate is None:
            h = F.gelu(self._joined(self.up(x), heard), approximate=self.gelu)
        else:
            x = self.gate.arrange(x)
            h = F.silu(self._joined(self.gate(x), heard)) * self.up(x)
        h = h if self.units is None else self.units(h, spread)
        return self.down(h, spread, more), h

    def _joined(self, x: Tensor, heard: Heard) -> Tensor:
        """What goes into the nonlinearity."""
        return x if self.lateral is None else x + self.lateral(heard)

    def add_part(self, name: str, part: nn.Module) -> None:
        """From now on y += part(x): x [..., W] of all positions, whole on every rank, and part(x)
        [..., W] a share of a sum over tp. Its parameters are parts.NAME.*; before an optimizer has
        seen the model."""
        self.parts = nn.ModuleDict() if self.parts is None else self.parts
        self.parts[name] = part


def sum_of_parts(parts: nn.ModuleDict, x: Tensor) -> Tensor:
    """What parts beside a feed-forward part add to it."""
    found = [part(x) for part in parts.values()]
    return functools.reduce(torch.add, found)


class Norm(nn.Module):
    """LayerNorm, or RMSNorm (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467), with a gain
    and in some forms a bias; whole on every tp rank."""

    bias: nn.Parameter | None

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.size, self.eps, self.rms = (shape.width,), shape.norm_eps, shape.rms_norm
        self.weight = mark_tensor_parallel(nn.Parameter(torch.empty(self.size)), -1)
        self.register_parameter("bias", None)
        if shape.biases:
            self.bias = mark_tensor_parallel(nn.Parameter(torch.empty(self.size)), -1)
        self.share = summed_gradient

    def forward(self, input: Tensor, spread: bool = False) -> Tensor:
        """[..., W] -> [..., W]; the backward pass is collective over tp if spread."""
        gain, bias = self.weight, self.bias
        if spread:
            gain, bias = self.share(gain), None if bias is None else self.share(bias)
        if self.rms:
            return F.rms_norm(input, self.size, gain, self.eps)
        return F.layer_norm(input, self.size, gain, bias, self.eps)


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, linears: Mapping[str, SparseLinear], shape: ModelShape) -> None:
        super().__init__()
        self.norm1 = Norm(shape)
        self.attention = Attention(linears, shape.head_width)
        self.norm2 = Norm(shape)
        # GPT-2 was published with the tanh form (gelu_new), nanoGPT has the exact one.
        self.mlp = Mlp(linears, gelu="tanh" if shape.form == "gpt2" else "none")

    def forward(
        self, x: Tensor, spread: bool = False, angles: Tensor | None = None, heard: Heard = ()
    ) -> Tensor:
        """[B, T, W] -> [B, T, W], or spread. Collective over tp.

        Args:
            heard: the hidden units of this block in earlier columns.
        """
        return self.with_hidden(x, spread, angles, heard)[0]

    def with_hidden(
        self, x: Tensor, spread: bool, angles: Tensor | None, heard: Heard
    ) -> tuple[Tensor, Tensor]:
        """The same, and the block's own hidden units [B, T, M_local] of all positions."""
        x = x + self.attention(self.norm1(x, spread), spread, angles)
        y, hidden = self.mlp.with_hidden(self.norm2(x, spread), spread, heard)
        return x + y, hidden


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

    Parameter names are those of model/shapes.py: embedding.weight, positions.weight, norm.weight,
    and in layers.{i}: norm1.weight, attention.{q,k,v,o}.weight, norm2.weight, mlp.{up,down}.weight;
    by form also mlp.gate.weight, head.weight, and `bias` beside `weight`. Those of a later column k
    begin with columns.{k}; see columns.py.
    """

    positions: "Positions | Rotary"
    head: VocabularyEmbedding | None
    """None if the head is the embedding."""

    columns: Columns | None
    """The later ones; None in a column itself, and where there is one only."""

    def __init__(
        self,
        shape: ModelShape,
        *,
        vocab_size: int,
        topologies: Mapping[str, LayerTopology],
        options: Mapping[str, LinearOptions] | None = None,
        activation_checkpointing: bool = False,
        sequence: bool = False,
        loss_chunk: int | None = None,
        column: int = 0,
    ) -> None:
        """Allocate this rank's share, on the CPU in fp32.

        Args:
            vocab_size: token ids in use; the embedding is padded above it.
            topologies: by layer name; a layer that is not named is dense.
            options: storage and backend by layer name; the default for one that is not named.
            sequence: spread positions over tp ranks between the linears (parallel.sequence).
            loss_chunk: tokens whose logits exist at once, where no more than the loss is asked
                for (model/chunked.py); 0 = of all, None = as many as suit the device.
            column: which one this is; the first holds the others.

        Raises:
            UserError: if the tensor-parallel size does not divide heads, those of keys or hidden
                units (with `sequence`, the context), or a backend does not fit its topology.
        """
        super().__init__()
        check_tensor_parallel(shape, dist.tp_size(), sequence=sequence)
        self.shape, self.number = shape, column
        self.vocab_size = vocab_size
        self.activation_checkpointing = activation_checkpointing
        self.sequence = sequence
        self.loss_chunk = loss_chunk
        self.embedding = VocabularyEmbedding(vocab_size, shape.width)
        self.positions = (
            Rotary(shape.context, shape.head_width, shape.rope_theta)
            if shape.rotary
            else Positions(shape.context, shape.width)
        )
        self.layers = nn.ModuleList(
            Block(block_linears(shape, index, topologies, options or {}, column), shape)
            for index in range(shape.layers)
        )
        for block in self.layers if column else ():
            assert isinstance(block, Block)
            block.mlp.lateral = Lateral(column, shape.mlp, shape.lateral)
        self.norm = Norm(shape)
        self.head = None if shape.tied else VocabularyEmbedding(vocab_size, shape.width)
        self.columns = None
        if shape.columns > 1 and not column:
            self.columns = Columns(
                [
                    GPT(
                        shape,
                        vocab_size=vocab_size,
                        topologies=topologies,
                        options=options,
                        column=number,
                    )
                    for number in range(1, shape.columns)
                ]
            )

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        with_logits: bool = False,
        weight: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Score each next token. Collective over tp: all ranks pass the same tokens.

        Args:
            tokens: int64 [B, T], T at most the context.
            targets: int64 [B, T], the token that follows each position; -1 = no target.
            with_logits: give the logits too, which takes another 4 bytes for each of them until
                the backward pass.
            weight: fp32 [B]; give the mean over rows of weight times the row's mean loss too, to
                go backward from.

        Returns:
            Loss fp32 [B, T] in nats, 0 where there is no target; and, in eval mode only (None in
            training), bool [B, T]: the most likely token is the target. With logits also fp32
            [B, T, V_local], padding at -inf. They leave through here and not by the side, so that
            ZeRO-3 sees a backward pass begin that begins from them. With a weight also the mean,
            fp32 []; unless logits are asked for, losses have no graph then.
        """
        assert tokens.shape[1] <= self.shape.context, (tokens.shape, self.shape.context)
        assert weight is None or not with_logits, "with logits, losses have a graph of their own"
        if weight is not None:
            weight = weight.float()[:, None].expand(targets.shape)
        if not self._spreads(tokens):
            return self._score(tokens, targets, with_logits, weight)
        # Position first, as spread features lie.
        turned = None if weight is None else weight.t()
        found = self._score(tokens.t(), targets.t().contiguous(), with_logits, turned, spread=True)
        return tuple(
            None if part is None else part.transpose(0, 1) if part.dim() else part for part in found
        )

    def logits(self, tokens: Tensor) -> Tensor:
        """Scores of each next token, int64 [B, T] -> fp32 [B, T, V_local]. Collective over tp.

        Ids at `vocab_size` and above are padding, at -inf.
        """
        return self.scores(self.features(tokens))

    def features(self, tokens: Tensor, spread: bool = False) -> Tensor:
        """Normed features of the last layer of the open column. Collective over tp.

        Args:
            tokens: int64 [B, T]; [T, B] with T divisible by tp if spread.

        Returns:
            [B, T, W], or [T / tp, B, W] of this rank's positions if spread.
        """
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        return columns.features(self.running, tokens, spread=spread, recompute=recompute)

    def entered(self, tokens: Tensor, spread: bool) -> tuple[Tensor, Tensor | None]:
        """What goes into this column's first block, and the angles of rotary positions."""
        x = self.embedding(tokens, spread)
        if isinstance(self.positions, Rotary):
            # DeepSpeed casts parameters to bf16 and leaves this table as it is; transformers rounds
            # cosines and sines too.
            return x, self.positions(tokens.shape[0 if spread else 1]).to(x.dtype)
        return x + self.positions(tokens, spread), None

    @property
    def running(self) -> "list[GPT]":
        """The columns up to the one that is open."""
        later = [] if self.columns is None else self.columns.up_to_open()
        return [self, *later]

    def scores(self, features: Tensor, spread: bool = False) -> Tensor:
        """Logits fp32 [B, T, V_local] of what `features` gave; see VocabularyEmbedding."""
        return self._head(features, spread)

    @property
    def _head(self) -> VocabularyEmbedding:
        own = self.running[-1]
        return own.embedding if own.head is None else own.head

    def _spreads(self, tokens: Tensor) -> bool:
        """Positions are spread in this pass. The same on all ranks of the tp group.

        Only in a pass that goes backward: another keeps no activations that a rank could be spared,
        and whoever looks into the model there (probes, analysis) finds all positions. Its texts may
        also be of any length.
        """
        divides = tokens.shape[1] % dist.tp_size() == 0
        return self.sequence and dist.tp_size() > 1 and divides and torch.is_grad_enabled()

    def _chunk(self, features: Tensor) -> int:
        rows = self._head.num_embeddings // dist.tp_size()  # ZeRO-3 hides the matrix here
        gpu = features.device.type != "cpu"
        return loss_chunk(self.loss_chunk, rows=rows, gpu=gpu)

    def _score(
        self,
        tokens: Tensor,
        targets: Tensor,
        with_logits: bool,
        weight: Tensor | None,
        *,
        spread: bool = False,
    ) -> tuple[Tensor | None, ...]:
        """See `forward`; all are [T, B] if spread, `weight` too."""
        features = self.features(tokens, spread)
        losses_go_back = torch.is_grad_enabled() and weight is None
        chunk = self._chunk(features)
        if chunk and not with_logits and not losses_go_back:
            asked = Asked(targets=targets, weight=weight, answers=not self.training, chunk=chunk)
            losses, correct, total = self._head(features, spread, asked)
            return (losses, correct) if total is None else (losses, correct, total / losses.numel())
        logits = self.scores(features, spread)
        correct = None
        if not self.training:
            # Before the loss, which may overwrite the logits.
            best = best_token(logits, self.embedding.vocab_start_index)
            correct = (best == targets) & (targets != NO_TARGET)
        if with_logits:
            # Over tp the loss is computed in the place of its logits.
            own = logits.clone() if dist.tp_size() > 1 else logits
            return cross_entropy(own, targets), correct, logits
        losses = cross_entropy(logits, targets)
        if weight is None:
            return losses, correct
        return losses.detach(), correct, (losses * weight).mean()


def _heads_first(x: Tensor, spread: bool) -> Tensor:
    """[B, T, H, D], or [T, B, H, D] if spread, -> [B, H, T, D], a view."""
    return x.permute(1, 2, 0, 3) if spread else x.transpose(1, 2)


def block_linears(
    shape: ModelShape,
    index: int,
    topologies: Mapping[str, LayerTopology],
    options: Mapping[str, LinearOptions],
    column: int = 0,
) -> dict[str, SparseLinear]:
    """The linears of block `index` of a column by kind, this rank's slices."""
    return {
        layer.kind: make_linear(
            layer,
            topologies.get(layer.name),
            options.get(layer.name, DEFAULT),
            tp_rank=dist.tp_rank(),
            tp_size=dist.tp_size(),
        )
        for layer in block_shapes(shape, index, column)
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
    split = (ColumnParallelSparseLinear, RowParallelSparseLinear)[layer.split_dim]
    return split(layer, topology, tp_rank=tp_rank, tp_size=tp_size, options=options)
