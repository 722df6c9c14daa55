"""From config to a model with its initial weights."""

from collections.abc import Mapping

from sparsecl.model.config import ModelConfig, ModelShape
from sparsecl.model.gpt import GPT
from sparsecl.model.init import initialize
from sparsecl.model.shapes import layer_shapes
from sparsecl.sparse.backends import BackendName, LinearOptions
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig
from sparsecl.topology.layer import LayerTopology


def build_gpt(
    config: ModelConfig,
    topology: TopologyConfig,
    *,
    vocab_size: int,
    seed: int,
    topologies: Mapping[str, LayerTopology] | None = None,
    backends: Mapping[str, BackendName] | None = None,
    sequence: bool = False,
    loss_chunk: int | None = None,
    shape: ModelShape | None = None,
) -> GPT:
    """This rank's share of an initialised model, on the CPU in fp32.

    The tensor-parallel place is that of `dist`. Masks and initial weights depend on `seed` and on
    the configs only: the ranks of a tp group together hold the same global model at every tp size.

    Args:
        topologies: drawn before, by layer name; None = draw them here.
        backends: what `auto` has chosen, by layer name; needed for topology.backend auto only.
        sequence, loss_chunk: see GPT.
        shape: that of the config, with the columns of the run; None = with one.

    Raises:
        UserError: if a layer would be empty, or the tp size does not divide the model.
    """
    shape = shape or config.resolved()
    if topologies is None:
        topologies = build_topologies(topology, layer_shapes(shape), seed=seed)
    model = GPT(
        shape,
        vocab_size=vocab_size,
        topologies=topologies,
        options={name: linear_options(topology, name, backends or {}) for name in topologies},
        activation_checkpointing=config.activation_checkpointing,
        sequence=sequence,
        loss_chunk=loss_chunk,
    )
    initialize(model, config, seed=seed)
    return model


def linear_options(
    config: TopologyConfig, name: str, backends: Mapping[str, BackendName]
) -> LinearOptions:
    """How the layer `name` is kept and multiplied."""
    return LinearOptions(
        role=config.role,
        storage=config.storage,
        backend=backends[name] if config.backend == "auto" else config.backend,
        block_size=config.block.size if config.block else 1,
        keep_expansion=config.keep_expansion,
    )
