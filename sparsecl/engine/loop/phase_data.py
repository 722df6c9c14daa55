"""Which sequences a phase reads."""

from sparsecl.data.batches import PhaseStream
from sparsecl.data.mixture import MixedStream
from sparsecl.data.prepare import PreparedData
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import Schedule

Stream = PhaseStream | MixedStream


def phase_stream(config: RunConfig, schedule: Schedule, data: PreparedData, phase: int) -> Stream:
    """Training sequences of one phase of the schedule, by number. The same on every rank."""
    if not config.phases.joint:
        return _part(config, schedule, data, phase)
    counts = [steps * config.batch.sequences for _, steps in schedule.parts]
    parts = [_part(config, schedule, data, part) for part in range(len(counts))]
    return MixedStream(parts, counts, seed=config.seed)


def _part(config: RunConfig, schedule: Schedule, data: PreparedData, part: int) -> PhaseStream:
    domain = data.domains[schedule.parts[part][0]]
    return PhaseStream(
        domain.train,
        context=schedule.shape.context,
        seed=config.seed,
        phase=part + config.phases.offset,
        domain_name=domain.name,
    )
