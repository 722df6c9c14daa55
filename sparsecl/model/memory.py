"""What a rank keeps in memory: a ledger in bytes, from formulas alone.

T = tokens of a micro-batch, W = width, V = padded vocabulary; O x I = cells and N = live weights of
one matrix, local to the tensor-parallel rank. `e` = bytes of an element in the forward pass.

Not in it, because it depends on the DeepSpeed JSON and on the machine: buckets of collectives,
parameters that ZeRO-3 has gathered for a layer, what the allocator holds; and on the CPU the
unpacked index while a matrix is expanded: 8 bytes for each live weight of a layer and 1 for each
cell.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from sparsecl.model.config import ModelShape, padded_vocabulary
from sparsecl.model.flops import Precision
from sparsecl.model.shapes import is_vocabulary, layer_shapes
from sparsecl.model.shapes import parts as model_parts
from sparsecl.sparse.backends import BackendName
from sparsecl.sparse.block import MAX_KERNEL_SIZE, MIN_KERNEL_SIZE
from sparsecl.sparse.index import INT32_CELLS
from sparsecl.sparse.kernels import GROUP
from sparsecl.sparse.sizes import RankSizes
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerShape, LayerTopology


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model is spread over ranks, and what passes through it at once."""

    zero_stage: int
    """0 to 3. Optimizer state is sharded from stage 1, gradients from 2, weights from 3."""

    precision: Precision
    tp_size: int = 1
    dp_size: int = 1
    micro: int = 1
    """Sequences of a micro-batch on one rank."""

    replayed: float = 0.0
    """Earlier sequences of a micro-batch beside each new one."""

    length: int | None = None
    """Tokens of a sequence; None = the model's context."""

    activation_checkpointing: bool = False
    sequence: bool = False
    """Between the linears a rank has tokens / tp_size positions only (parallel.sequence)."""

    gpu: bool = False
    """The block backend has kernels there; on a CPU it rearranges its inputs, as csr does."""

    num_moments: int = 2
    """fp32 tensors that the optimizer keeps for each weight: 2 for Adam, 1 for momentum."""

    accumulates: bool = True
    """A step has several micro-batches: ZeRO 1 keeps whole gradients from one to the next."""

    sums_in_fp32: bool = False
    """Gradients are added in fp32, whatever the precision (data_types.grad_accum_dtype of the
    DeepSpeed JSON)."""

    loss_chunk: int = 0
    """Tokens whose logits exist at once (speed.loss_chunk); 0 = of all, until the backward pass."""

    persistence: int = 0
    """ZeRO 3 keeps parameters of at most so many elements whole on every rank, beside their shards
    (stage3_param_persistence_threshold of the DeepSpeed JSON)."""

    @property
    def element(self) -> int:
        """Bytes of a weight or an activation in the forward pass."""
        return 4 if self.precision == "fp32" else 2

    def num_tokens(self, shape: ModelShape) -> int:
        """Of a micro-batch on one rank, replayed ones included."""
        return round(self.micro * (1.0 + self.replayed)) * (self.length or shape.context)

    def share(self, numel: int) -> int:
        """Elements that a rank has of `numel` of the optimizer's state."""
        return -(-numel // self.dp_size) if self.zero_stage >= 1 else numel


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes on the rank that holds most live weights."""

    weights: int
    gradients: int
    master: int
    """fp32 copy of the weights that the optimizer steps; 0 where it steps the weights themselves
    (ZeRO 0 in fp32)."""

    moments: int
    anchors: int
    """fp32 initial values that absent weights are held at (role update)."""

    indices: int
    """Masks of masked storage, index of packed storage, plans of sparse backends. Not sharded, but
    for the mask beside masters, of which it is the mean over shards."""

    kept: int
    """Matrices that keep_expansion holds beside packed values."""

    beside: int = 0
    """What methods keep beside masters, as these are sharded."""

    methods: int = 0
    """What methods keep else on the device, such as a frozen copy. Not sharded."""

    activations: int
    """What autograd keeps of one micro-batch for its backward pass."""

    transient: int
    """What the largest moment adds: the gradient of the logits, or the last of their chunks with
    the gradients of features and head; or, in a block, the gradients of hidden units, the expanded
    matrix or the new gradient of a layer, and that of the embedding; or the embedding's gradients
    from both ends of the model. What methods add to that moment is added."""

    @property
    def state(self) -> int:
        """What stays from step to step."""
        return self.total - self.transient - self.activations

    @property
    def total(self) -> int:
        """All of it, at the largest moment of a backward pass."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class _Part:
    """One rank's slice of one matrix."""

    out_features: int
    in_features: int
    num_live: int
    backend: BackendName
    sparse: bool
    """It lies on a topology."""

    @property
    def cells(self) -> int:
        return self.out_features * self.in_features

    def elements(self, packed: bool) -> int:
        """Of the parameter."""
        return self.num_live if packed and self.sparse else self.cells


def memory_per_rank(
    shape: ModelShape,
    vocab_size: int,
    topologies: Mapping[str, LayerTopology],
    config: TopologyConfig,
    layout: Layout,
    *,
    backends: Mapping[str, BackendName] | None = None,
    added: Sequence[int] = (),
) -> RankMemory:
    """Add up the ledger of the fullest tensor-parallel rank. What methods keep beside parameters is
    for the caller to add (engine/ledger.py).

    Args:
        topologies: by layer name; a layer without one is dense.
        config: its storage, role, block size and keep_expansion count, and its backend.
        backends: what backend `auto` has chosen, by layer name; until then it counts as dense.
        added: local elements of each parameter that methods add.
    """
    parts = _fullest_rank(shape, topologies, config, layout.tp_size, backends or {})
    packed, e = config.storage == "packed", layout.element
    rows = padded_vocabulary(vocab_size, layout.tp_size) // layout.tp_size
    sizes = [*_sizes(shape, rows, parts, packed, layout.tp_size), *added]
    num_local = sum(sizes)
    num_shard = -(-num_local // layout.dp_size)
    num_state = layout.share(num_local)
    num_whole = 0
    if layout.zero_stage >= 3 and layout.dp_size > 1:
        num_whole = sum(size for size in sizes if size <= layout.persistence)
    summed = 4 if layout.sums_in_fp32 else e
    keeps_whole = layout.accumulates or layout.sums_in_fp32
    shards_gradients = layout.zero_stage >= (2 if keeps_whole else 1)
    own_master = layout.precision != "fp32" or layout.zero_stage >= 1
    activations, head, block = _activations(shape, rows, layout, parts)
    # The gradient that a tied embedding has from the head waits for that from the lookup. At the
    # end, when no activation is left, both exist and their sum; of one that is not tied, one.
    table = e * rows * shape.width
    matrices = e * max(_new_elements(part, config) for part in parts) + shape.tied * table
    return RankMemory(
        weights=e * (num_shard + num_whole if layout.zero_stage >= 3 else num_local),
        gradients=summed * (num_shard if shards_gradients else num_local),
        master=4 * num_state if own_master else 0,
        moments=4 * layout.num_moments * num_state,
        anchors=4 * layout.share(_anchored(parts, config)),
        indices=sum(_index_bytes(part, config) for part in parts)
        + (layout.share(_projected(parts, config)) if layout.zero_stage else 0),
        kept=e * sum(part.cells for part in parts if config.keep_expansion and _expands(part)),
        activations=activations,
        transient=max(head, block + matrices, (3 if shape.tied else 1) * table - activations),
    )


def parameter_sizes(
    shape: ModelShape,
    vocab_size: int,
    topologies: Mapping[str, LayerTopology],
    config: TopologyConfig,
    *,
    tp_size: int = 1,
    added: Sequence[int] = (),
) -> list[int]:
    """Elements of every parameter on the fullest tensor-parallel rank, the embedding first."""
    parts = _fullest_rank(shape, topologies, config, tp_size, {})
    rows = padded_vocabulary(vocab_size, tp_size) // tp_size
    return [*_sizes(shape, rows, parts, config.storage == "packed", tp_size), *added]


def rank_sizes(
    shape: ModelShape,
    vocab_size: int,
    topologies: Mapping[str, LayerTopology],
    config: TopologyConfig,
    layout: Layout,
    *,
    backends: Mapping[str, BackendName] | None = None,
    added: Sequence[int] = (),
    num_phases: int = 1,
) -> RankSizes:
    """What methods ask of the same rank. Arguments as for `memory_per_rank`."""
    parts = _fullest_rank(shape, topologies, config, layout.tp_size, backends or {})
    rows = padded_vocabulary(vocab_size, layout.tp_size) // layout.tp_size
    layers, packed = layer_shapes(shape), config.storage == "packed"
    sizes = [*_sizes(shape, rows, parts, packed, layout.tp_size), *added]
    by_kind = dict.fromkeys((layer.kind for layer in layers), 0)
    for layer, part in zip(layers, parts, strict=True):
        by_kind[layer.kind] += part.elements(packed)
    # A flat partition of ZeRO 1 and 2 may hold the whole of a parameter; ZeRO 3 cuts each.
    slices = layout.share(sum(sizes))
    largest = layout.share(max(sizes)) if layout.zero_stage >= 3 else min(max(sizes), slices)
    num_tokens = layout.num_tokens(shape)
    return RankSizes(
        layers=tuple(layers),
        num_phases=num_phases,
        vocab_size=vocab_size,
        context=shape.context,
        tokens=num_tokens,
        element=layout.element,
        parameters=sum(sizes),
        slices=slices,
        slices_by_kind={kind: layout.share(numel) for kind, numel in by_kind.items()},
        sparse_slices=layout.share(sum(p.elements(packed) for p in parts if p.sparse)),
        largest_slice=largest,
        anchored=layout.share(_anchored(parts, config)),
        cells=sum(part.cells for part in parts if part.sparse),
        copy=layout.element * sum(sizes) + sum(_index_bytes(part, config) for part in parts),
        logits=num_tokens * rows,
        # Over several ranks Megatron's cross entropy writes over its logits, so a copy is kept.
        kept_logits=(4 if layout.tp_size == 1 else 8) * num_tokens * rows,
    )


def _sizes(
    shape: ModelShape, rows: int, parts: Sequence[_Part], packed: bool, tp_size: int
) -> list[int]:
    """Elements of every parameter on a rank, the embedding first and the matrices last.

    Args:
        rows: of this rank's embedding.
    """
    dense = [
        # The rows are this rank's already.
        part.num_elements // (1 if part.partition_dim < 0 or is_vocabulary(part.name) else tp_size)
        for part in model_parts(shape, rows)
        if part.layer is None
    ]
    return dense + [part.elements(packed) for part in parts]


def _anchored(parts: Sequence[_Part], config: TopologyConfig) -> int:
    return sum(part.cells for part in parts if part.sparse) if config.role == "update" else 0


def live_index_bytes(cells: int, num_live: int) -> int:
    """Bytes of a LiveIndex: nothing if all cells live, else bitmap or int32 indices."""
    if num_live == cells:
        return 0
    bitmap = -(-cells // 8) + 4 * -(-cells // GROUP)
    return min(bitmap, 4 * num_live) if cells < INT32_CELLS else bitmap


def _activations(
    shape: ModelShape, vocab_local: int, layout: Layout, parts: Sequence[_Part]
) -> tuple[int, int, int]:
    """Bytes that stay until the backward pass, and that it adds: in the head, in the last block.

    Autograd keeps of a block: the inputs of both norms and what they give (4 W), q, k, v and the
    output of attention (4 W / tp, less where heads of keys and values are fewer), the hidden units
    before and after the GELU (2 mlp / tp); in a gated form what gate and up give, the one after
    SiLU, and their product (4 mlp / tp). An RMSNorm on a CPU keeps what it gives before the gain
    too. With activation checkpointing only the block's input stays, and one block at a time is made
    again. With `sequence` the inputs of norms are of T / tp positions; what they give is kept as it
    was gathered. A later column also keeps what it hears: the hidden units of each earlier one, in
    every block; that the earlier ones run forward adds little at a time and is left out.

    Args:
        vocab_local: rows of this rank's embedding.
    """
    e, tp = layout.element, layout.tp_size
    num_tokens = layout.num_tokens(shape)
    stream = e * num_tokens * shape.width
    inner, hidden = stream // tp, e * num_tokens * shape.mlp // tp
    keys = inner * shape.kv_heads // shape.heads  # as many bytes are values
    spread = tp if layout.sequence else 1
    own = stream // spread  # of the residual stream
    # Sparse products on a CPU want features first, and attention gives tokens first: `o` keeps a
    # copy.
    copies = not layout.gpu and any(part.backend != "dense" for part in parts)
    # fp32: deviation (and mean, of a LayerNorm) of two norms, and the logarithm of each softmax's
    # denominator.
    per_norm = 1 if shape.rms_norm else 2
    statistics = 8 * per_norm * num_tokens // spread + 4 * num_tokens * (shape.heads // tp)
    norms = 2 * own + 2 * stream + (2 * own if shape.rms_norm and not layout.gpu else 0)
    saved = norms + (2 + copies) * inner + 2 * keys + (4 if shape.gated else 2) * hidden
    saved += statistics
    # The stream's gradient, and that of the hidden units; if spread, also the gathered gradient.
    in_block = stream + (2 if shape.gated else 1) * hidden + (own if spread > 1 else 0)
    if copies:
        # The stream's gradient with features first; lower precisions are computed in fp32.
        in_block += stream + (4 // e - 1) * 2 * (stream + hidden)
    # Input and output of the last norm stay until the head is done.
    in_head = norms // 2 + 4 * per_norm * num_tokens // spread
    in_head += logit_bytes(shape, vocab_local, layout)
    if layout.loss_chunk:
        # Gradients of features and, in fp32, head; in low precision a chunk's share of the latter.
        in_head += stream + (4 + (e if e < 4 else 0)) * vocab_local * shape.width
    heard = (shape.columns - 1) * hidden
    if not layout.activation_checkpointing:
        return shape.layers * (saved + heard), in_head, in_block
    return shape.layers * (own + heard), in_head, in_block + saved - own


def logit_bytes(shape: ModelShape, vocab_local: int, layout: Layout) -> int:
    """What logits and all that is made of them take on a rank, at the most."""
    num_tokens = layout.num_tokens(shape)
    if layout.loss_chunk:
        # Logits and their softmax; in low precision also what the product gave, or the gradient.
        per_logit = 8 + (layout.element if layout.element < 4 else 0)
        return per_logit * min(layout.loss_chunk, num_tokens) * vocab_local
    # The logits' fp32 softmax, its gradient, and the gradient of the logits. Over several ranks
    # Megatron's cross entropy turns the one into the other in place.
    return (3 if layout.tp_size == 1 else 1) * 4 * num_tokens * vocab_local


def _fullest_rank(
    shape: ModelShape,
    topologies: Mapping[str, LayerTopology],
    config: TopologyConfig,
    tp_size: int,
    backends: Mapping[str, BackendName],
) -> list[_Part]:
    """The slices of the tensor-parallel rank that holds most live weights."""
    layers = layer_shapes(shape)
    counts = np.array(
        [_live_by_rank(layer, topologies.get(layer.name), tp_size) for layer in layers]
    )
    fullest = int(counts.sum(0).argmax())
    parts = []
    for layer, live in zip(layers, counts[:, fullest], strict=True):
        size = [layer.out_features, layer.in_features]
        size[layer.split_dim] //= tp_size
        chosen = config.backend if config.backend != "auto" else backends.get(layer.name, "dense")
        sparse = layer.name in topologies
        parts.append(_Part(size[0], size[1], int(live), chosen if sparse else "dense", sparse))
    return parts


def _live_by_rank(layer: LayerShape, topology: LayerTopology | None, tp_size: int) -> Sequence[int]:
    if topology is None:
        return [layer.num_cells // tp_size] * tp_size
    if tp_size == 1:
        return [topology.num_live]
    degrees = topology.column_degrees() if layer.split_dim else topology.row_degrees()
    return [int(count) for count in degrees.reshape(tp_size, -1).sum(1)]


def _expands(part: _Part) -> bool:
    """A matrix is made of the live values for each product; a full one is a view of them."""
    return part.sparse and part.backend == "dense" and part.num_live < part.cells


def _new_elements(part: _Part, config: TopologyConfig) -> int:
    """Elements that the gradient of one layer takes until it is added to the earlier ones.

    W, where it is expanded for dx, is gone before dW comes, which is as large.
    """
    if not part.sparse or (config.storage == "masked" and part.backend == "dense"):
        return part.cells
    if config.storage == "masked":
        return part.cells + part.num_live  # the live gradient is put into a matrix
    return part.num_live + (part.cells if _expands(part) else 0)


def _index_bytes(part: _Part, config: TopologyConfig) -> int:
    if not part.sparse:
        return 0
    masked = config.storage == "masked"
    total = part.cells if masked else 0  # one byte of a bool mask for each cell
    if not masked or part.backend != "dense":
        total += live_index_bytes(part.cells, part.num_live)
    return total + _plan_bytes(part, config)


def _projected(parts: list[_Part], config: TopologyConfig) -> int:
    """Bytes of the mask that lies beside masters which are stepped as one (optim/masking.py)."""
    masked = config.storage == "masked" and config.role == "topology"
    return sum(part.cells for part in parts if part.sparse) if masked else 0


def _plan_bytes(part: _Part, config: TopologyConfig) -> int:
    """Indices of a backend's own, int32."""
    if part.backend in ("native", "csr"):  # rows and columns, in both orders
        return 4 * (3 * part.num_live + part.out_features + part.in_features + 2)
    if part.backend == "block" and config.block is not None:
        size = math.gcd(config.block.size, MAX_KERNEL_SIZE)  # of the tiles that it works on
        size = size if size >= MIN_KERNEL_SIZE else config.block.size
        tiles = part.num_live // size**2
        rows, columns = part.out_features // size, part.in_features // size
        return 4 * (5 * tiles + rows + columns + 2)
    return 0
