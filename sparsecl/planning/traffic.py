"""Bytes that ranks exchange in an optimizer step, by collective.

P = parameters that the rank keeps (live ones only where storage is packed), e = bytes of an
element, A = micro-batches of a step, L = layers. Counted below DeepSpeed 0.19.8 by
tests/tools/test_plan.py; where it does more than a textbook says, this says what it does:
ZeRO 1 and 2 sum gradients by all-reduce (use_multi_rank_bucket_allreduce is its default), not by
reduce-scatter, and ZeRO 2 and 3 do so after every micro-batch, ZeRO 0 and 1 once in a step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sparsecl.model.config import ModelShape
from sparsecl.model.shapes import parts
from sparsecl.planning.machines import Machine

Collective = Literal["all_reduce", "reduce_scatter", "all_gather"]


@dataclass(frozen=True)
class Flow:
    """All calls of one kind in a step, as seen by one rank."""

    what: str
    """For people: what travels."""

    axis: Literal["dp", "tp"]
    collective: Collective
    handed: int
    """Bytes that the rank hands over, whatever the group's size."""

    calls: int

    def wire(self, ranks: int) -> float:
        """Bytes that a ring of `ranks` makes each of them send."""
        if self.collective == "all_gather":
            return float((ranks - 1) * self.handed)  # what is handed over is a shard
        factor = 2 if self.collective == "all_reduce" else 1
        return factor * (ranks - 1) / ranks * self.handed

    def seconds(self, ranks: int, place: "Wiring") -> float:
        """Expected time of all calls in a group of `ranks`."""
        if ranks == 1:
            return 0.0
        rate, latency = place.reach(self.axis)
        hops = 2 if self.collective == "all_reduce" else 1
        return self.wire(ranks) / rate + self.calls * hops * math.log2(ranks) * latency


@dataclass(frozen=True)
class Wiring:
    """How the groups lie in nodes: tp within one, as ranks are numbered tp first."""

    machine: Machine
    tp_size: int
    dp_size: int

    def reach(self, axis: Literal["dp", "tp"]) -> tuple[float, float]:
        """Bytes/s for each rank, and seconds of a hop, in the groups of an axis."""
        machine = self.machine
        share, per_node = machine.link_share, machine.per_node
        if axis == "tp":
            inside = self.tp_size <= per_node
            rate = machine.link if inside else machine.network
            return rate * share, machine.latency * (1 if inside else 2)
        if self.tp_size * self.dp_size <= per_node:
            return machine.link * share, machine.latency
        # A ring enters a node and leaves it once; the members of a group in a node have a network
        # port each, and NCCL lays rings over all of them.
        members = max(1, per_node // self.tp_size)
        return min(machine.link, members * machine.network) * share, 2 * machine.latency


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What the flows depend on."""

    shape: ModelShape
    sizes: Sequence[int]
    """Elements of every parameter that a rank keeps, the embedding first."""

    zero_stage: int
    element: int
    tp_size: int
    dp_size: int
    micro: int
    accumulation: int
    persistence: int = 0
    """See Layout.persistence."""

    reuse_distance: int = 1_000_000_000
    """stage3_max_reuse_distance: a parameter used again within so many elements stays."""

    prefetch: int = 50_000_000
    """Elements of parameters that are gathered ahead in one call."""

    bucket: int = 500_000_000
    """Elements of a bucket."""

    loss_chunk: int = 0
    """See Layout.loss_chunk."""

    activation_checkpointing: bool = False
    sequence: bool = False
    """Positions are spread over tp ranks between the linears (parallel.sequence)."""


def flows(given: Exchange) -> list[Flow]:
    """All collectives of a step; sums of a few bytes (norms, overflow) are left out."""
    return [*_data_parallel(given), *_tensor_parallel(given)]


def _data_parallel(given: Exchange) -> list[Flow]:
    num, e, dp = sum(given.sizes), given.element, given.dp_size
    per_pass = given.zero_stage >= 2
    times = given.accumulation if per_pass else 1
    calls = times * -(-num // given.bucket)
    if given.zero_stage == 3:
        # Every rank has an equal part of every parameter, the last one filled up.
        padded = sum(-(-size // dp) * dp for size in given.sizes)
        found = [Flow("gradients", "dp", "reduce_scatter", times * e * padded, calls)]
        return found + (_zero3_gathers(given) if dp > 1 else [])
    found = [Flow("gradients", "dp", "all_reduce", times * e * num, calls)]
    if given.zero_stage and dp > 1:
        found.append(Flow("parameters", "dp", "all_gather", e * -(-num // dp), 2))
    return found


def _zero3_gathers(given: Exchange) -> list[Flow]:
    """Parameters come once for a micro-batch, if they may stay from the forward to the backward
    pass, else twice; those that stay whole come once after the update."""
    e, dp = given.element, given.dp_size
    passing = [size for size in given.sizes if size > given.persistence]
    staying = [size for size in given.sizes if size <= given.persistence]
    # Elements that lie between two uses of a parameter are up to twice the model.
    again = max(0.0, 1.0 - given.reuse_distance / (2 * sum(given.sizes)))
    times = given.accumulation * (1.0 + again)
    shard = sum(-(-size // dp) for size in passing)
    # Once it knows the order, DeepSpeed gathers ahead, many parameters in one call.
    calls = math.ceil(times * max(1, -(-sum(passing) // given.prefetch)))
    found = [Flow("parameters", "dp", "all_gather", round(times * e * shard), calls)]
    kept = sum(-(-size // dp) for size in staying)
    return [*found, Flow("small parameters", "dp", "all_gather", e * kept, 1)]


def _tensor_parallel(given: Exchange) -> list[Flow]:
    """Activations: after `o` and `down` forward, before q k v and `up` backward; the embedding's
    output, and the gradient of the head's input. Cross entropy: three numbers for each token."""
    if given.tp_size == 1:
        return []
    tokens = given.micro * given.shape.context
    stream = given.element * tokens * given.shape.width
    of_losses, times = given.accumulation * 3 * 4 * tokens, given.accumulation
    if given.loss_chunk:
        times *= -(-tokens // given.loss_chunk)
        losses = Flow("losses", "tp", "all_gather", of_losses, times)
    else:
        losses = Flow("losses", "tp", "all_reduce", of_losses, 3 * times)
    if given.sequence:
        return [*_spread_activations(given, stream), losses]
    # A block that is made again repeats its first sum; the last one, which nobody needs, is not.
    times = 5 if given.activation_checkpointing else 4
    count = times * given.shape.layers + 2
    passes = given.accumulation
    activations = Flow("activations", "tp", "all_reduce", passes * count * stream, passes * count)
    return [activations, losses]


def _spread_activations(given: Exchange, stream: int) -> list[Flow]:
    """A gather and a scatter for every sum: before q k v and `up`, and after `o` and `down`; the
    same reversed backward. So at both ends of the model. A block that is made again repeats both of
    its gathers and its first scatter.

    Once for a pass, the gradient of learned position features is gathered, and those of gains (with
    all biases that every rank holds) are summed.
    """
    layers, again = given.shape.layers, int(given.activation_checkpointing)
    passes, width = given.accumulation, given.element * given.shape.width
    gathers, scatters = (4 + 2 * again) * layers + 2, (4 + again) * layers + 2
    gathered, learned = gathers * stream // given.tp_size, 0 if given.shape.rotary else 1
    gathered += learned * given.shape.context // given.tp_size * width
    gains = sum(part.is_gain for part in parts(given.shape, 1))
    return [
        Flow("activations", "tp", "all_gather", passes * gathered, passes * (gathers + learned)),
        Flow("activations", "tp", "reduce_scatter", passes * scatters * stream, passes * scatters),
        Flow("gains", "tp", "all_reduce", passes * gains * width, passes * gains),
    ]
