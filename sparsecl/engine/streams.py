"""Which sequences a phase reads."""

from sparsecl.data.batches import PhaseStream
from sparsecl.data.mixture import MixedStream
from sparsecl.data.prepare import PreparedData
from sparsecl.engine.plan import Plan
from sparsecl.engine.run_config import RunConfig

Stream = PhaseStream | MixedStream


def phase_stream(config: RunConfig, plan: Plan, data: PreparedData, phase: int) -> Stream:
    """Training sequences of one phase of the plan, by number. The same on every rank."""
    if not config.phases.joint:
        return _part(config, plan, data, phase)
    counts = [steps * config.batch.sequences for _, steps in plan.parts]
    parts = [_part(config, plan, data, part) for part in range(len(counts))]
    return MixedStream(parts, counts, seed=config.seed)


def _part(config: RunConfig, plan: Plan, data: PreparedData, part: int) -> PhaseStream:
    domain = data.domains[plan.parts[part][0]]
    return PhaseStream(
        domain.train,
        context=plan.shape.context,
        seed=config.seed,
        phase=part + config.phases.offset,
        domain_name=domain.name,
    )
