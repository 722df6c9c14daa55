"""From config to a model with its initial weights."""

from sparsecl.model.config import ModelConfig
from sparsecl.model.gpt import GPT
from sparsecl.model.init import initialize
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.build import build_topologies
from sparsecl.topology.config import TopologyConfig


def build_gpt(config: ModelConfig, topology: TopologyConfig, *, vocab_size: int, seed: int) -> GPT:
    """This rank's share of an initialised model, on the CPU in fp32.

    The tensor-parallel place is that of `dist`. Masks and initial weights depend on `seed` and on
    the configs only: the ranks of a tp group together hold the same global model at every tp size.

    Raises:
        UserError: if a layer would be empty, or the tp size does not divide the model.
    """
    shape = config.resolved()
    model = GPT(
        shape,
        vocab_size=vocab_size,
        topologies=build_topologies(topology, layer_shapes(shape), seed=seed),
        role=topology.role,
        activation_checkpointing=config.activation_checkpointing,
    )
    initialize(model, config, seed=seed)
    return model
