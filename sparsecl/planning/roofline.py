"""Expected time of an optimizer step: each part at the rate of what limits it, then added up.

T = tokens of a micro-batch on a rank, W = width, V = vocabulary rows, L = layers, all local to the
tensor-parallel rank; A = micro-batches of a step; e = bytes of an element. The parts of a
micro-batch do not overlap each other on one GPU, so they are added; together they cannot be faster
than the host starts their kernels. Real runs are slower, by the machine's `reached`. Counted is
eager PyTorch with fused attention and fused AdamW.
"""

from dataclasses import dataclass

from sparsecl.model.config import ModelShape
from sparsecl.model.flops import Precision
from sparsecl.planning.machines import Machine
from sparsecl.planning.traffic import Flow, Wiring

# Elements that one block reads and writes forward: two norms (in, out), two residual sums (two in,
# one out), and two copies around attention are of width W; the GELU (in, out) is of its own.
STREAM_MOVES, INNER_MOVES, HIDDEN_MOVES = 10, 4, 2
# SiLU (in, out) and the product with what `up` gives (two in, one out); q and k turned (each read
# twice and written once, the copy with halves exchanged written and read).
GATED_MOVES, ROTARY_MOVES = 5, 10
BACKWARD = 2
"""Backward over forward, in bytes of elementwise work and in FLOPs of products."""

# Bytes of a logit: written and read in the model's precision, made fp32, softmax in and out, its
# gradient in and out, and back; in chunks (model/chunked.py) it is read for its largest and scaled
# in place, which are as many. fp32 models spare the two conversions.
LOGIT_BYTES = {"bf16": 38, "fp16": 38, "fp32": 28}

# A parameter in the optimizer: fp32 master and two moments in and out, fp32 gradient in, low
# precision out (30); its gradient converted (6), measured (4), and clipped (8).
ADAM_BYTES = 48
# The mask's projection of master and moments (optim/masking.py): in, out, and one byte of mask.
PROJECT_BYTES = 25

# Kernels of a block and of the rest in one forward and backward pass, about.
BLOCK_KERNELS, PACKED_KERNELS, OTHER_KERNELS = 60, 18, 30

# What compiled blocks (speed.compile) keep of elementwise bytes and of kernels: norms, sums and
# copies become one kernel each: assumed.
COMPILED_SHARE = 0.6

# Share of the rate of a dense product that sparse ones reach, per live weight.
BLOCK_SHARE = 0.6  # tiles of 64-128 against cuBLAS: assumed
NATIVE_SHARE = 0.5  # against MKL in fp32 on a Zen 4: measured at 5-30 %
CSR_SHARE = 0.27  # of the fp32 peak: Sputnik on a V100, arXiv 2006.10901


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a rank does in a step."""

    shape: ModelShape
    precision: Precision
    tokens: int
    """Of a micro-batch."""

    accumulation: int
    tp_size: int
    vocab_local: int
    dense_weights: float
    """Cells that are multiplied as dense matrices, the embedding included; global, of a column and
    of the passes that earlier ones make forward."""

    block_weights: float = 0
    """Live weights that the block backend multiplies; global, as above."""

    csr_weights: float = 0
    native_weights: float = 0
    masked_cells: int = 0
    """Cells of masked matrices on the rank."""

    packed_cells: int = 0
    """Cells of packed matrices on the rank that are expanded for each product."""

    packed_live: int = 0
    keep_expansion: bool = False
    state_elements: int = 0
    """Parameters that the rank's optimizer steps."""

    forward_only: float = 0.0
    """Earlier columns that run beside the one that trains, on average."""

    offload: bool = False
    activation_checkpointing: bool = False
    sequence: bool = False
    compiled: bool = False
    loss_chunk: int = 0
    """See Layout.loss_chunk."""

    @property
    def element(self) -> int:
        """Bytes of an element in the forward pass."""
        return 4 if self.precision == "fp32" else 2

    @property
    def passes(self) -> float:
        """Forward and backward passes of one column in a micro-batch."""
        return 1 + self.forward_only / (1 + BACKWARD)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step, by part."""

    products: float
    """Matrix products, the head's included."""

    attention: float
    elementwise: float
    """Norms, sums, GELU, copies."""

    logits: float
    """Softmax and its gradient."""

    storage: float
    """Masks on gradients, or live values expanded and gathered."""

    starting: float
    """What the host needs longer to start kernels than the GPU to run them."""

    optimizer: float
    gaps: float
    """What real runs need on top of the parts above, by the machine's `reached`."""

    communication: float
    """All collectives, as if nothing else ran."""

    exposed: float
    """The part of it that nothing hides."""

    @property
    def compute(self) -> float:
        """All that is not communication."""
        passes = self.products + self.attention + self.elementwise + self.logits
        return passes + self.storage + self.starting + self.optimizer + self.gaps

    @property
    def step(self) -> float:
        """The whole."""
        return self.compute + self.exposed


def step_time(
    work: Work, machine: Machine, place: Wiring, traffic: list[Flow], *, overlap: bool
) -> StepTime:
    """The roofline.

    Args:
        overlap: overlap_comm of the DeepSpeed JSON: gradients travel during the backward pass.
    """
    passes = work.accumulation
    parts = {
        "products": passes * product_seconds(work, machine),
        "attention": passes * attention_seconds(work, machine),
        "elementwise": passes * elementwise_bytes(work) / machine.memory_rate,
        "logits": passes * logit_bytes(work) / machine.memory_rate,
        "storage": (passes * pass_storage_bytes(work) + step_storage_bytes(work))
        / machine.memory_rate,
    }
    starting = max(0.0, passes * num_kernels(work) * machine.launch - sum(parts.values()))
    update = optimizer_bytes(work) / machine.memory_rate
    gaps = (sum(parts.values()) + starting + update) * (1.0 / machine.reached - 1.0)
    by_axis = {"tp": 0.0, "dp": 0.0}
    for flow in traffic:
        ranks = place.tp_size if flow.axis == "tp" else place.dp_size
        by_axis[flow.axis] += flow.seconds(ranks, place)
    hidden = 0.0
    if overlap:
        # Gradients of the last micro-batch can travel from the first layer's backward on.
        backward = (parts["products"] + parts["attention"]) * BACKWARD / (1 + BACKWARD) / passes
        gradients = sum(f.seconds(place.dp_size, place) for f in traffic if f.what == "gradients")
        hidden = min(backward, gradients)
    communication = by_axis["tp"] + by_axis["dp"]
    return StepTime(
        **parts,
        starting=starting,
        optimizer=update,
        gaps=gaps,
        communication=communication,
        exposed=communication - hidden,
    )


def product_seconds(work: Work, machine: Machine) -> float:
    """Matrix products of one micro-batch: 2 FLOPs forward, 4 backward per weight and token."""
    times = 6 + (2 if work.activation_checkpointing else 0)
    per_weight = times * work.tokens / work.tp_size
    slow = machine.slowdown(work.precision)
    dense = work.dense_weights * slow + work.block_weights * slow / BLOCK_SHARE
    dense += work.native_weights / NATIVE_SHARE
    fp32_rate = machine.peak * machine.fp32_share
    csr = work.csr_weights * per_weight / (fp32_rate * CSR_SHARE)
    return dense * per_weight / machine.gemm_rate + csr


def attention_seconds(work: Work, machine: Machine) -> float:
    """Causal attention of one micro-batch: half of the square, 12 L W context / 2 per token."""
    shape = work.shape
    flops = 6 * shape.layers * shape.width * shape.context * work.tokens / work.tp_size
    again = work.passes + (1 / 3 if work.activation_checkpointing else 0.0)
    rate = machine.peak * machine.attention_share
    return flops * again * machine.slowdown(work.precision) / rate


def elementwise_bytes(work: Work) -> float:
    """Of one micro-batch."""
    shape = work.shape
    elements = STREAM_MOVES * shape.width / (work.tp_size if work.sequence else 1)
    inner = INNER_MOVES * shape.width + (GATED_MOVES if shape.gated else HIDDEN_MOVES) * shape.mlp
    inner += ROTARY_MOVES * (shape.width + shape.kv_width) / 2 if shape.rotary else 0
    elements += inner / work.tp_size
    times = 1 + BACKWARD + work.forward_only + (1 if work.activation_checkpointing else 0)
    share = COMPILED_SHARE if work.compiled else 1.0
    return share * times * shape.layers * work.tokens * work.element * elements


def logit_bytes(work: Work) -> float:
    """Of one micro-batch; the gradient of the head, to which each chunk adds, included."""
    logits = LOGIT_BYTES[work.precision] * work.tokens * work.vocab_local
    if not work.loss_chunk:
        return logits
    chunks = -(-work.tokens // work.loss_chunk)
    added = 8 + (2 * work.element if work.element < 4 else 0)
    return logits + chunks * added * work.vocab_local * work.shape.width


def pass_storage_bytes(work: Work) -> float:
    """What storage adds to one micro-batch: the mask on each new gradient; or expansions, forward
    and backward, and live gradients gathered."""
    e = work.element
    masked = (2 * e + 1) * work.masked_cells
    again = work.forward_only + (1 if work.activation_checkpointing else 0)
    times = 0 if work.keep_expansion else 2 + again
    return (masked + (1 + times) * expansion_bytes(work)) / work.shape.columns


def step_storage_bytes(work: Work) -> float:
    """What storage adds to a step: one expansion where it is kept."""
    return expansion_bytes(work) if work.keep_expansion else 0.0


def expansion_bytes(work: Work) -> float:
    """One way between live values and matrices: both, and the bitmap."""
    return work.element * (work.packed_cells + work.packed_live) + work.packed_cells / 8


def optimizer_bytes(work: Work) -> float:
    """Of a step; the projection's share of a sharded state is that of the masked cells."""
    if work.offload:
        # Through the host: gradients go and weights come over PCIe, about 1/30 of memory's rate,
        # and the host's AdamW is slower still. Counted as forty passes: assumed.
        return 40 * ADAM_BYTES * work.state_elements
    return ADAM_BYTES * work.state_elements + PROJECT_BYTES * min(
        work.masked_cells, work.state_elements
    )


def num_kernels(work: Work) -> int:
    """Kernels of one micro-batch, about."""
    packed = PACKED_KERNELS if work.packed_cells else 0
    again = work.passes + (1 / 3 if work.activation_checkpointing else 0.0)
    share = COMPILED_SHARE if work.compiled else 1.0
    return round(work.shape.layers * (share * BLOCK_KERNELS + packed) * again) + OTHER_KERNELS
