"""From the config to numbers: phases, steps, batches. All checks across parts happen here."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparsecl.engine.deepspeed.ds_config import Resolved, accumulation, sums_in_fp32
from sparsecl.engine.run_config import PhasesConfig, RunConfig
from sparsecl.errors import UserError
from sparsecl.methods.facts import RunFacts, error_text
from sparsecl.model.config import (
    ModelShape,
    check_tensor_parallel,
    loss_chunk,
    padded_vocabulary,
)
from sparsecl.model.memory import Layout
from sparsecl.model.shapes import layer_shapes
from sparsecl.optim.config import StageConfig
from sparsecl.optim.learning_rate import lr_factor
from sparsecl.topology.config import TopologyConfig

DEFAULT_STEPS = 200
JOINT = -1
"""Domain of a phase that trains all of them."""


@dataclass(frozen=True)
class Stage:
    """Steps [begin, end) of a phase, with their own learning-rate curve."""

    name: str
    begin: int
    end: int
    lr_scale: float


@dataclass(frozen=True)
class Phase:
    """One domain's turn."""

    index: int
    domain: int
    """Index of the domain; JOINT = all."""

    num_steps: int
    stages: tuple[Stage, ...]

    def stage(self, step: int) -> Stage:
        """The stage that `step` of this phase belongs to."""
        return next(stage for stage in self.stages if stage.begin <= step < stage.end)


@dataclass(frozen=True)
class Schedule:
    """What the run will do, resolved for the number of ranks at hand."""

    shape: ModelShape
    domains: tuple[str, ...]
    phases: tuple[Phase, ...]
    parts: tuple[tuple[int, int], ...]
    """(domain, steps) of each phase as it would run alone; those that a joint phase joins."""

    dp_size: int
    micro: int
    """Sequences per rank and micro-batch."""

    accumulation: int
    tokens_per_step: int

    @property
    def order(self) -> list[int]:
        """Index of the domain trained in each phase."""
        return [phase.domain for phase in self.phases]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run (an upper bound if a phase may end early)."""
        return sum(phase.num_steps for phase in self.phases)

    def domain_name(self, phase: Phase) -> str:
        """The domain that a phase trains, "all domains" for a joint one."""
        return "all domains" if phase.domain == JOINT else self.domains[phase.domain]


def make_schedule(config: RunConfig, *, world_size: int) -> Schedule:
    """Resolve and check a config.

    Raises:
        UserError: one line with the keys, the values and the way out.
    """
    tensor = config.parallel.tensor
    if world_size % tensor:
        raise UserError(
            f"parallel.tensor={tensor} does not divide the number of processes, {world_size}. "
            f"Start a multiple of {tensor} processes, or lower parallel.tensor."
        )
    shape = config.shape
    check_tensor_parallel(shape, tensor, sequence=config.parallel.sequence)
    if config.optimizer.kind == "muon" and config.topology.storage == "packed":
        raise UserError(
            "optimizer.kind=muon needs matrices, and topology.storage=packed keeps vectors of live "
            "values. Use topology.storage=masked, or optimizer.kind=adamw."
        )
    dp_size = world_size // tensor
    micro = config.batch.micro or _automatic_micro(config.batch.sequences, dp_size)
    if config.phases.patience and not config.eval.every:
        raise UserError("phases.patience needs evaluations inside the phase: set eval.every > 0.")
    if config.phases.until_loss is not None and not config.eval.every:
        raise UserError("phases.until_loss needs evaluations inside the phase: set eval.every > 0.")
    parts = _parts(config, tokens_per_step := config.batch.sequences * shape.context)
    if len(config.phases.until_loss or ()) > len(parts):
        raise UserError(
            f"phases.until_loss has {len(config.phases.until_loss or ())} losses for {len(parts)} "
            "phases; give one per phase at most"
        )
    _check_methods(config, micro, len(parts))
    phases = _phases(config, parts)
    num_steps = sum(phase.num_steps for phase in phases)
    if max(config.checkpoint.keep_steps, default=0) > num_steps:
        raise UserError(
            f"checkpoint.keep_steps={list(config.checkpoint.keep_steps)}: the run has {num_steps} "
            "steps; give steps within them"
        )
    return Schedule(
        shape=shape,
        domains=tuple(domain.name for domain in config.data.domains),
        phases=phases,
        parts=parts,
        dp_size=dp_size,
        micro=micro,
        accumulation=accumulation(config.batch.sequences, micro, dp_size),
        tokens_per_step=tokens_per_step,
    )


def rank_layout(
    config: RunConfig, schedule: Schedule, deepspeed: Resolved, vocab_size: int, *, gpu: bool
) -> Layout:
    """What the ledger of memory (model/memory.py) needs to know of a run."""
    tp = config.parallel.tensor
    rows = padded_vocabulary(vocab_size, tp) // tp
    chunk = loss_chunk(config.speed.loss_chunk, rows=rows, gpu=gpu)
    momentum = int(config.optimizer.momentum > 0)
    zero = deepspeed.config["zero_optimization"]
    return Layout(
        zero_stage=deepspeed.stage,
        precision=config.precision,
        tp_size=tp,
        dp_size=schedule.dp_size,
        micro=schedule.micro,
        replayed=config.methods.replayed_share,
        activation_checkpointing=config.model.activation_checkpointing,
        sequence=config.parallel.sequence,
        gpu=gpu,
        num_moments=2 if config.optimizer.kind != "sgd" else momentum,
        accumulates=schedule.accumulation > 1,
        sums_in_fp32=sums_in_fp32(deepspeed.config),
        loss_chunk=0 if config.methods.keeps_logits else chunk,
        # DeepSpeed's own default, if the JSON does not say.
        persistence=int(zero.get("stage3_param_persistence_threshold", 100_000)),
    )


def learning_rate(config: RunConfig, phase: Phase, step: int) -> float:
    """The learning rate of `step` of a phase; every stage has its own curve."""
    stage = phase.stage(step)
    factor = lr_factor(
        config.schedule,
        phase=phase.index,
        step=step - stage.begin,
        num_steps=stage.end - stage.begin,
    )
    return config.optimizer.lr * stage.lr_scale * factor


def _automatic_micro(sequences: int, dp_size: int) -> int:
    """The largest micro-batch up to 8 that divides the batch; 1 if none does (then checked)."""
    fitting = (size for size in range(8, 0, -1) if sequences % (size * dp_size) == 0)
    return next(fitting, 1)


def _check_methods(config: RunConfig, micro: int, num_phases: int) -> None:
    """Let every method refuse a run that lacks what it needs."""
    used = config.methods.used()
    for name, block in used.items():
        facts = RunFacts(
            dense=config.topology.kind == "dense",
            density=1.0 if config.topology.path else config.topology.rho,
            role=config.topology.role,
            storage=config.topology.storage,
            tiled=_tiled(config.topology),
            live_products=config.topology.backend != "dense",
            joint=config.phases.joint,
            num_phases=num_phases,
            micro=micro,
            optimizer=config.optimizer.kind,
            layers=tuple(layer_shapes(config.shape)),
            others=tuple(other for other in used if other != name),
            freezing=tuple(o for o, its in used.items() if o != name and "F" in its.flags),
            rewires=config.methods.rewires,
        )
        try:
            block.check(facts)
        except ValueError as error:
            raise UserError(error_text(name, block, error)) from None


def _tiled(topology: TopologyConfig) -> bool:
    """A layer multiplies by tiles, or may when the fastest way is looked for."""
    return topology.backend == "block" or (
        topology.backend == "auto" and topology.block is not None
    )


def _own_stages(config: RunConfig) -> tuple[StageConfig, ...]:
    """The stages that a method divides every phase into; empty: phases.stages says."""
    found = {name: tuple(block.stages()) for name, block in config.methods.used().items()}
    found = {name: stages for name, stages in found.items() if stages}
    if len(found) > 1:
        raise UserError(f"methods: {' and '.join(found)} both divide phases into stages; take one")
    for name in found:
        phases = config.phases
        if phases.stages != PhasesConfig().stages:
            raise UserError(f"phases.stages: methods.{name} divides phases itself")
        early = {"patience": phases.patience > 0, "until_loss": phases.until_loss is not None}
        for key in (key for key, used in early.items() if used):
            raise UserError(
                f"phases.{key}: methods.{name} divides phases into stages, and a phase that ends "
                "early would miss the last ones. Leave one of the two out."
            )
    return next(iter(found.values()), ())


def _parts(config: RunConfig, tokens_per_step: int) -> tuple[tuple[int, int], ...]:
    """(domain, steps) of each phase."""
    names = [domain.name for domain in config.data.domains]
    order = list(config.phases.order) or names
    for name in order:
        if name not in names:
            raise UserError(f"phases.order: no domain is named {name!r}; there are {names}")
    steps = _steps(config.phases, len(order), tokens_per_step)
    return tuple((names.index(name), count) for name, count in zip(order, steps, strict=True))


def _phases(config: RunConfig, parts: tuple[tuple[int, int], ...]) -> tuple[Phase, ...]:
    if config.phases.joint:
        parts = ((JOINT, sum(steps for _, steps in parts)),)
    own = _own_stages(config)
    stages = own or config.phases.stages
    way_out = "the steps of the phase" if own else "its share or the steps of the phase"
    return tuple(
        Phase(index, domain, steps, _stages(stages, steps, way_out))
        for index, (domain, steps) in enumerate(parts)
    )


def _steps(config: PhasesConfig, num_phases: int, tokens_per_step: int) -> Sequence[int]:
    key = "tokens" if config.tokens is not None else "steps"
    given = config.tokens if config.tokens is not None else config.steps
    values = given if isinstance(given, tuple) else (given or DEFAULT_STEPS,) * num_phases
    if len(values) != num_phases:
        raise UserError(
            f"phases.{key} has {len(values)} numbers for {num_phases} phases; give one number, or "
            "one per phase"
        )
    if key == "steps":
        return values
    return [-(-tokens // tokens_per_step) for tokens in values]


def _stages(configs: tuple[StageConfig, ...], num_steps: int, way_out: str) -> tuple[Stage, ...]:
    stages, begin, share = [], 0, 0.0
    for config in configs:
        share += config.share
        end = num_steps if config is configs[-1] else round(share * num_steps)
        if end <= begin:
            raise UserError(
                f"phases.stages: stage {config.name!r} gets no step of {num_steps}; raise {way_out}"
            )
        stages.append(Stage(config.name, begin, end, config.lr_scale))
        begin = end
    return tuple(stages)
