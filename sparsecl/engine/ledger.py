"""What a run holds and costs with all that its methods add, from its config alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Schedule
from sparsecl.methods.facts import AddedParameter, MethodMemory
from sparsecl.methods.work import LayerWork, MethodWork, RunWork
from sparsecl.model.flops import (
    Counted,
    ParameterCounts,
    TrainingFlops,
    column_shares,
    count_parameters,
    multiplied_weights,
    training_flops_per_token,
)
from sparsecl.model.memory import Layout, RankMemory, memory_per_rank, rank_sizes
from sparsecl.model.shapes import layer_shapes
from sparsecl.sparse.backends import BackendName
from sparsecl.topology.config import BY_LIVE_WEIGHT
from sparsecl.topology.layer import LayerTopology


@dataclass(frozen=True)
class Held:
    """Bytes of a rank."""

    memory: RankMemory
    """On its device, with what methods keep there."""

    methods: MethodMemory
    """What methods keep; of it `update` and `host` are not in `memory`."""


@dataclass(frozen=True)
class RunFlops:
    """FLOPs of all new tokens of a run, over all ranks; an upper bound where a phase may end early.

    Replayed tokens come on top, and passes that a method makes at borders.
    """

    per_token: TrainingFlops
    """Forward and backward, with the weights that live at the start."""

    tokens: int
    training: int
    """Forward and backward, with the weights that live at each step."""

    gradients: int
    """Gradients of absent weights, which a method asks for."""

    scores: int
    """Of the graph."""

    executed: int
    """All of it, as the backends do it."""

    @property
    def total(self) -> int:
        """By live weights."""
        return self.training + self.gradients + self.scores

    def parts(self) -> dict[str, float]:
        """As records and plans name them; real numbers, for JSON has no larger integers."""
        return {
            "training": float(self.training),
            "dense_gradients": float(self.gradients),
            "scores": float(self.scores),
            "executed": float(self.executed),
        }


def flops(
    config: RunConfig,
    schedule: Schedule,
    counts: ParameterCounts,
    topologies: Mapping[str, Counted],
    *,
    backends: Mapping[str, str] | None = None,
) -> RunFlops:
    """What a run computes, with what its methods do to the graph.

    Args:
        counts: as `count` gives them.
        backends: what topology.backend auto has chosen, by layer name; None = counted as dense.
    """
    topology, backend = config.topology, config.topology.backend
    chosen = dict.fromkeys(topologies, backend) if backend != "auto" else dict(backends or {})
    multiplied = multiplied_weights(schedule.shape, topologies, chosen)
    per_token = training_flops_per_token(
        schedule.shape,
        counts,
        role=topology.role,
        multiplied=multiplied,
        shares=column_shares(schedule.shape, [phase.num_steps for phase in schedule.phases]),
    )
    tokens, work = schedule.num_steps * schedule.tokens_per_step, MethodWork()
    if topologies:
        layers = [
            LayerWork(
                outputs=layer.out_features,
                inputs=layer.in_features,
                live=topologies[layer.name].num_live,
                kind=layer.kind,
                heads=layer.out_features // (layer.head_width or layer.out_features),
                sparse=(by := chosen.get(layer.name, "dense")) in BY_LIVE_WEIGHT,
                has_gradient=topology.storage == "masked" and by == "dense",
            )
            for layer in layer_shapes(schedule.shape)
            if layer.name in topologies
        ]
        run = RunWork(
            layers=tuple(layers),
            phases=tuple(phase.num_steps for phase in schedule.phases),
            tokens=schedule.tokens_per_step,
        )
        work = config.methods.work(run)
    return RunFlops(
        per_token=per_token,
        tokens=tokens,
        training=per_token.useful * tokens + work.density,
        gradients=work.gradients,
        scores=work.scores,
        executed=per_token.executed * tokens + work.executed + work.scores,
    )


def count(config: RunConfig, vocab_size: int, topologies: Mapping[str, Counted]) -> ParameterCounts:
    """Parameters of the global model with the parts that methods add."""
    added = _added(config).values()
    return count_parameters(
        config.shape,
        vocab_size,
        topologies,
        added=sum(parameter.num_elements for parameter in added),
        added_multiplied=sum(parameter.num_multiplied for parameter in added),
    )


def in_columns(config: RunConfig, vocab_size: int, topologies: Mapping[str, Counted]) -> int:
    """Live parameters of the columns after the first."""
    shape, own = config.shape, count(config, vocab_size, topologies).live
    first = replace(shape, columns=1, lateral=0)
    added = sum(parameter.num_elements for parameter in _added(config).values())
    return own - added - count_parameters(first, vocab_size, topologies).live


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
    shape, added = config.shape, added_sizes(config)
    of = (shape, vocab_size, topologies, config.topology, layout)
    memory = memory_per_rank(*of, backends=backends, added=added)
    if not config.methods.used():
        return Held(memory, MethodMemory())
    sizes = rank_sizes(*of, backends=backends, added=added, num_phases=config.num_phases)
    kept = config.methods.kept(sizes)
    memory = replace(
        memory,
        beside=kept.beside,
        methods=kept.kept,
        transient=memory.transient + kept.passing,
    )
    return Held(memory, kept)


def _added(config: RunConfig) -> Mapping[str, AddedParameter]:
    layers = layer_shapes(config.shape)
    return config.methods.parameters(layers, config.num_phases)
