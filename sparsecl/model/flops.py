"""What a model costs: parameters and FLOPs per token, from formulas alone. Bytes: memory.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from sparsecl.model.config import ModelShape
from sparsecl.model.shapes import is_vocabulary, lateral_parts, layer_shapes, parts
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
    """vocab_size x width, for each column."""

    other: int
    """Positions, norms and biases, and what columns hear of each other."""

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
    embedding, found = vocab_size * shape.width * shape.columns, parts(shape, vocab_size)
    kept = [part for part in found if part.layer is None and not is_vocabulary(part.name)]
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
    shares: Sequence[float] = (),
) -> TrainingFlops:
    """Count matrix products: per weight 2 FLOPs forward, 2 for dX and 2 for dW.

    The head is a product with the embedding, or with a matrix of its size, and counts, and so do
    added parts; lookups, norms, biases, rotary positions and softmax do not. Nor does it change
    attention that heads of keys and values serve several heads of queries.
    Attention adds 12 * layers * width * context, the whole square as in PaLM, appendix B
    (https://arxiv.org/abs/2204.02311), which makes utilisation comparable with published numbers.

    Args:
        multiplied: see `multiplied_weights`; None = all cells, as with the dense backend.
        shares: of the tokens, those that train each column (`column_shares`); those before it run
            forward only.
    """
    columns = shape.columns
    shares = shares or [1 / columns] * columns
    forward_only = sum(share * place for place, share in enumerate(shares))
    attention = 4 * shape.layers * shape.width * shape.context
    fixed = 6 * (counts.embedding // columns + counts.added_multiplied) + 3 * attention
    fixed += round(forward_only * attention + heard_flops(shape, shares))
    # In role "update" every weight takes part in forward and dX, only dW is sparse.
    used = counts.masked_live if role == "topology" else counts.masked_total
    executed = counts.masked_total if multiplied is None else multiplied

    def products(in_forward: int, in_weights: int) -> int:
        whole = 4 * in_forward + 2 * in_weights
        if columns == 1:
            return whole + fixed
        return round((whole + 2 * in_forward * forward_only) / columns) + fixed

    return TrainingFlops(
        useful=products(used, counts.masked_live),
        executed=products(executed, executed),
        dense=products(counts.masked_total, counts.masked_total),
    )


def column_shares(shape: ModelShape, phases: Sequence[int]) -> list[float]:
    """Of a run's tokens the share that trains each column, from the steps of its phases."""
    if shape.columns == 1:
        return [1.0]
    steps = [*phases, *[0] * (shape.columns - len(phases))]
    return [num / sum(steps) for num in steps]


def heard_flops(shape: ModelShape, shares: Sequence[float]) -> float:
    """FLOPs per token of what columns hear of those before them."""
    cells = [
        sum(
            part.num_elements
            for index in range(shape.layers)
            for part in lateral_parts(shape, index, column)
            if len(part.shape) == 2
        )
        for column in range(shape.columns)
    ]
    return sum(
        share * (6 * cells[column] + 2 * sum(cells[:column])) for column, share in enumerate(shares)
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
