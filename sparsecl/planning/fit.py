"""Does a rank's memory fit the card, and how large may a micro-batch be."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparsecl.engine.ledger import Held
from sparsecl.model.config import ModelShape, padded_vocabulary
from sparsecl.model.memory import Layout, RankMemory, logit_bytes
from sparsecl.planning.machines import Machine

GIB = 2**30
# What the allocator cannot use between blocks of other sizes: assumed.
FRAGMENTS = 0.03
MAX_MICRO = 4096


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """What DeepSpeed holds beside the ledger, in bytes."""

    buckets: int
    """Gradients on their way into collectives; two buckets where they overlap."""

    gathered: int
    """Whole parameters between their uses, ZeRO 3."""

    update: int
    """fp32 gradients of this rank's part while the optimizer steps, and what methods take then;
    activations are gone."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A rank's memory, and the card's."""

    memory: RankMemory
    buffers: Buffers
    on_host: int
    """Bytes of master and moments, and what methods keep beside them, that live on the CPU
    (offload_optimizer)."""

    remembered: int
    """Bytes that methods keep on the CPU, whatever lives there."""

    logits: int
    """Bytes of the transient part that logits and their gradients take."""

    in_update: bool
    """The largest moment is the optimizer's, not that of a backward pass."""

    fragments: int
    """Bytes that the allocator cannot use."""

    context: int
    """Bytes that libraries take for themselves, on a GPU with CUDA's context."""

    needed: int
    """Bytes at the largest moment, fragments and context included."""

    available: int

    @property
    def fits(self) -> bool:
        """Whether a run would get through a step."""
        return self.needed <= self.available


def buffers(zero: Mapping[str, Any], sizes: list[int], layout: Layout, *, overlap: bool) -> Buffers:
    """Buckets, gathered parameters and the update's copies.

    Args:
        zero: block zero_optimization of the DeepSpeed JSON.
        sizes: elements of every parameter of the rank.
    """
    e, stage, dp = layout.element, layout.zero_stage, layout.dp_size
    num = sum(sizes)
    bucket = int(zero.get("reduce_bucket_size", 500_000_000))
    # ZeRO 1 and 2 allocate buckets whole, however small the model is; ZeRO 0 flattens what it has.
    buckets = 0 if stage == 0 else e * bucket * (2 if overlap and stage < 3 else 1)
    if stage == 0 and dp > 1:
        buckets = e * min(num, bucket)
    if stage == 1 and layout.sums_in_fp32:
        # Another wrapper: fp32 gradients in buckets of DeepSpeed's own size, and e bytes to send.
        buckets = (4 + e) * min(num, 500_000_000) if dp > 1 else 0
    gathered = 0
    if stage == 3 and dp > 1:
        passing = sum(size for size in sizes if size > layout.persistence)
        live = int(zero.get("stage3_max_live_parameters", 1_000_000_000))
        gathered = e * min(passing, live)
    share = num if stage == 0 else -(-num // dp)
    # The gradient of the part, made fp32; ZeRO 0 in fp32, and 1 and 2 with fp32 sums, step it as it
    # is.
    as_it_is = layout.precision == "fp32" if stage == 0 else stage < 3 and layout.sums_in_fp32
    update = 0 if as_it_is else 4 * share
    return Buffers(buckets=buckets, gathered=gathered, update=update)


def fit(
    held: Held, extra: Buffers, shape: ModelShape, vocab_size: int,
    layout: Layout, machine: Machine, *, offload: bool,
) -> Fit:  # fmt: skip
    """Compare a rank's ledger with a card."""
    memory, methods = held.memory, held.methods
    on_host = memory.master + memory.moments + memory.beside if offload else 0
    extra = replace(extra, update=extra.update + (0 if offload else methods.update))
    backward = memory.activations + memory.transient + extra.buckets + extra.gathered
    peak = memory.state - on_host + max(backward, extra.update)
    fragments, context = round(peak * FRAGMENTS), round(machine.context_gib * GIB)
    rows = padded_vocabulary(vocab_size, layout.tp_size) // layout.tp_size
    logits = logit_bytes(shape, rows, layout)
    return Fit(
        memory=memory,
        buffers=extra,
        on_host=on_host,
        remembered=methods.host,
        logits=min(logits, memory.transient),
        in_update=extra.update > backward,
        fragments=fragments,
        context=context,
        needed=peak + fragments + context,
        available=round(machine.memory_gib * GIB),
    )


def largest_micro(fits: Callable[[Layout], bool], layout: Layout) -> int:
    """Sequences of the largest micro-batch for which `fits` holds; 0 if not even one does."""
    low, high = 0, 1
    while high <= MAX_MICRO and fits(replace(layout, micro=high)):
        low, high = high, 2 * high
    high = min(high, MAX_MICRO + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(replace(layout, micro=middle)) else (low, middle)
    return low
