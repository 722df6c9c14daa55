"""What a model costs: parameters and FLOPs per token, from formulas alone. Bytes: memory.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from sparsecl.model.config import ModelShape
from sparsecl.model.shapes import VOCABULARY, layer_shapes, parts
from sparsecl.topology.config import BY_LIVE_WEIGHT

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ParameterCounts:
    """Weights of the global model. A tied embedding counts once, padding rows not at all."""

    masked_total: int
    """Cells of the matrices that a topology may mask."""

    masked_live: int
    """Those of them that live; all of them in a dense model."""

    embedding: int
    """vocab_size x width."""

    other: int
    """Positions, norms and biases."""

    head: int = 0
    """As `embedding`, if the head is not tied to it."""

    added: int = 0
    """Of parts that methods add; all of them live."""

    multiplied: int | None = None
    """Of these what a token multiplies with, of a table the rows that it reads; None = all."""

    @property
    def added_multiplied(self) -> int:
        """Of parts that methods add, what a token multiplies with."""
        return self.added if self.multiplied is None else self.multiplied

    @property
    def total(self) -> int:
        """Parameters of the dense model of this shape, with the same parts."""
        return self.masked_total + self.embedding + self.head + self.other + self.added

    @property
    def live(self) -> int:
        """Parameters that exist (role topology) or are trained (role update)."""
        return self.masked_live + self.embedding + self.head + self.other + self.added

    @property
    def density_masked(self) -> float:
        """Live share of the masked matrices."""
        return self.masked_live / self.masked_total

    @property
    def density_model(self) -> float:
        """Live share of the whole model; larger, because the embedding stays dense."""
        return self.live / self.total


class Counted(Protocol):
    """A topology, or what is known of one before it is drawn."""

    @property
    def num_live(self) -> int: ...


def count_parameters(
    shape: ModelShape,
    vocab_size: int,
    topologies: Mapping[str, Counted],
    *,
    added: int = 0,
    added_multiplied: int | None = None,
) -> ParameterCounts:
    """Count the weights of the global model; a layer without a topology is dense.

    Args:
        added: elements of the parts that methods add.
        added_multiplied: of these what a token multiplies with; None = all.
    """
    total = live = 0
    for layer in layer_shapes(shape):
        total += layer.num_cells
        topology = topologies.get(layer.name)
        live += layer.num_cells if topology is None else topology.num_live
    embedding, found = vocab_size * shape.width, parts(shape, vocab_size)
    kept = [part for part in found if part.layer is None and part.name not in VOCABULARY]
    return ParameterCounts(
        masked_total=total,
        masked_live=live,
        embedding=embedding,
        other=sum(part.num_elements for part in kept),
        head=0 if shape.tied else embedding,
        added=added,
        multiplied=added_multiplied,
    )


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of one training step (forward and backward) per token of a full context."""

    useful: int
    """Live weights only: what the topology asks for."""

    executed: int
    """What the backends do: native, csr and block multiply live weights, dense every
    cell."""

    dense: int
    """The same model without masks."""


def training_flops_per_token(
    shape: ModelShape,
    counts: ParameterCounts,
    *,
    role: Literal["topology", "update"] = "topology",
    multiplied: int | None = None,
) -> TrainingFlops:
    """Count matrix products: per weight 2 FLOPs forward, 2 for dX and 2 for dW.

    The head is a product with the embedding, or with a matrix of its size, and counts, and so do
    added parts; lookups, norms, biases, rotary positions and softmax do not. Nor does it change
    attention that heads of keys and values serve several heads of queries.
    Attention adds 12 * layers * width * context, the whole square as in PaLM, appendix B
    (https://arxiv.org/abs/2204.02311), which makes utilisation comparable with published numbers.

    Args:
        multiplied: see `multiplied_weights`; None = all cells, as with the dense backend.
    """
    fixed = 6 * (counts.embedding + counts.added_multiplied)
    fixed += 12 * shape.layers * shape.width * shape.context
    # In role "update" every weight takes part in forward and dX, only dW is sparse.
    used = counts.masked_live if role == "topology" else counts.masked_total
    executed = counts.masked_total if multiplied is None else multiplied
    return TrainingFlops(
        useful=4 * used + 2 * counts.masked_live + fixed,
        executed=6 * executed + fixed,
        dense=6 * counts.masked_total + fixed,
    )


def multiplied_weights(
    shape: ModelShape,
    topologies: Mapping[str, Counted],
    backends: Mapping[str, str],
) -> int:
    """Cells that products touch: the live ones of layers on native, csr or block, all of the
    others.

    Args:
        backends: by layer name; a layer that is not named multiplies as a dense matrix.
    """
    total = 0
    for layer in layer_shapes(shape):
        sparse = layer.name in topologies and backends.get(layer.name) in BY_LIVE_WEIGHT
        total += topologies[layer.name].num_live if sparse else layer.num_cells
    return total
