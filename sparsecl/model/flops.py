"""What a model costs: parameters, FLOPs per token, bytes of model state per rank. Formulas only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sparsecl.model.config import ModelShape, padded_vocabulary
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.layer import LayerTopology

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ParameterCounts:
    """Weights of the global model. The tied embedding counts once, its padding rows not at all."""

    masked_total: int
    """Cells of the matrices that a topology may mask."""

    masked_live: int
    """Those of them that live; all of them in a dense model."""

    embedding: int
    """vocab_size x width."""

    other: int
    """Positions and norms."""

    @property
    def total(self) -> int:
        """Parameters of the dense model of this shape."""
        return self.masked_total + self.embedding + self.other

    @property
    def live(self) -> int:
        """Parameters that exist (role topology) or are trained (role update)."""
        return self.masked_live + self.embedding + self.other

    @property
    def density_masked(self) -> float:
        """Live share of the masked matrices."""
        return self.masked_live / self.masked_total

    @property
    def density_model(self) -> float:
        """Live share of the whole model; larger, because the embedding stays dense."""
        return self.live / self.total


def count_parameters(
    shape: ModelShape, vocab_size: int, topologies: Mapping[str, LayerTopology]
) -> ParameterCounts:
    """Count the weights of the global model; a layer without a topology is dense."""
    total = live = 0
    for layer in layer_shapes(shape):
        total += layer.num_cells
        topology = topologies.get(layer.name)
        live += layer.num_cells if topology is None else topology.num_live
    return ParameterCounts(
        masked_total=total,
        masked_live=live,
        embedding=vocab_size * shape.width,
        # Two norms in each layer, one at the end.
        other=(shape.context + 2 * shape.layers + 1) * shape.width,
    )


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of one training step (forward and backward) per token of a full context."""

    useful: int
    """Live weights only: what the topology asks for."""

    dense: int
    """The same model without masks. Masked storage executes this many at every density."""


def training_flops_per_token(
    shape: ModelShape, counts: ParameterCounts, *, role: Literal["topology", "update"] = "topology"
) -> TrainingFlops:
    """Count matrix products: per weight 2 FLOPs forward, 2 for dX and 2 for dW.

    The head is a product with the embedding and counts; lookups, norms and softmax do not.
    Attention adds 12 * layers * width * context, the whole square as in PaLM, appendix B
    (https://arxiv.org/abs/2204.02311), which makes utilisation comparable with published numbers.
    """
    fixed = 6 * counts.embedding + 12 * shape.layers * shape.width * shape.context
    # In role "update" every weight takes part in forward and dX, only dW is sparse.
    used = counts.masked_live if role == "topology" else counts.masked_total
    return TrainingFlops(
        useful=4 * used + 2 * counts.masked_live + fixed,
        dense=6 * counts.masked_total + fixed,
    )


@dataclass(frozen=True)
class StateBytes:
    """Bytes of model state on one rank. Activations and communication buffers come on top."""

    weights: int
    gradients: int
    master: int
    """fp32 copy of the weights that the optimizer steps."""

    moments: int
    """The two Adam moments, fp32."""

    masks: int
    """One byte per masked cell of the local slices; ZeRO does not shard it."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.master + self.moments + self.masks


def state_bytes_per_rank(
    shape: ModelShape,
    vocab_size: int,
    *,
    zero_stage: int,
    precision: Precision,
    tp_size: int = 1,
    dp_size: int = 1,
    dense: bool = False,
) -> StateBytes:
    """Model state under masked storage, which keeps absent entries too: density changes nothing.

    ZeRO shards over dp: optimizer state from stage 1, gradients from stage 2, weights from stage 3.
    Under fp32 and stage 0 the weights are their own master; from stage 1 on DeepSpeed keeps a copy.

    Args:
        dense: no masks are kept.
    """
    counts = count_parameters(shape, vocab_size, {})
    split = counts.masked_total + padded_vocabulary(vocab_size, tp_size) * shape.width
    num_local = split // tp_size + counts.other
    num_shard = -(-num_local // dp_size)
    width = 4 if precision == "fp32" else 2  # bytes of a weight in the forward pass
    num_state = num_shard if zero_stage >= 1 else num_local
    return StateBytes(
        weights=width * (num_shard if zero_stage >= 3 else num_local),
        gradients=width * (num_shard if zero_stage >= 2 else num_local),
        master=0 if precision == "fp32" and zero_stage == 0 else 4 * num_state,
        moments=8 * num_state,
        masks=0 if dense else counts.masked_total // tp_size,
    )
