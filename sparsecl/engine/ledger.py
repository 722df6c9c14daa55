"""What a run holds and costs with all that its methods add, from its config alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import num_phases
from sparsecl.methods.facts import AddedParameter, MethodMemory
from sparsecl.model.flops import Counted, ParameterCounts, count_parameters
from sparsecl.model.memory import Layout, RankMemory, memory_per_rank, rank_sizes
from sparsecl.model.shapes import layer_shapes
from sparsecl.sparse.backends import BackendName
from sparsecl.topology.layer import LayerTopology


@dataclass(frozen=True)
class Held:
    """Bytes of a rank."""

    memory: RankMemory
    """On its device, with what methods keep there."""

    methods: MethodMemory
    """What methods keep; of it `update` and `host` are not in `memory`."""


def count(config: RunConfig, vocab_size: int, topologies: Mapping[str, Counted]) -> ParameterCounts:
    """Parameters of the global model with the parts that methods add."""
    added = sum(parameter.num_elements for parameter in _added(config).values())
    return count_parameters(config.model.resolved(), vocab_size, topologies, added=added)


def added_sizes(config: RunConfig) -> list[int]:
    """Elements of each parameter that methods add, on one tensor-parallel rank."""
    tensor = config.parallel.tensor
    return [
        parameter.num_elements // (tensor if parameter.partition_dim >= 0 else 1)
        for parameter in _added(config).values()
    ]


def rank_memory(
    config: RunConfig,
    vocab_size: int,
    topologies: Mapping[str, LayerTopology],
    layout: Layout,
    *,
    backends: Mapping[str, BackendName] | None = None,
) -> Held:
    """The ledger of the fullest rank. Arguments as for `memory_per_rank`."""
    shape, added = config.model.resolved(), added_sizes(config)
    of = (shape, vocab_size, topologies, config.topology, layout)
    memory = memory_per_rank(*of, backends=backends, added=added)
    if not config.methods.used():
        return Held(memory, MethodMemory())
    sizes = rank_sizes(*of, backends=backends, added=added, num_phases=num_phases(config))
    kept = config.methods.memory(sizes)
    memory = replace(
        memory,
        beside=kept.beside,
        methods=kept.kept,
        transient=memory.transient + kept.passing,
    )
    return Held(memory, kept)


def _added(config: RunConfig) -> Mapping[str, AddedParameter]:
    layers = layer_shapes(config.model.resolved())
    return config.methods.parameters(layers, num_phases(config))
