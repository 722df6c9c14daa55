"""The run config: every part's own config joined, and nothing else."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from sparsecl.bounds import check_bounds, check_name
from sparsecl.config import younger
from sparsecl.data.config import DataConfig, TokenizerConfig
from sparsecl.engine.speed_config import SpeedConfig
from sparsecl.methods.config import MethodsConfig
from sparsecl.model.config import ModelConfig, ModelShape
from sparsecl.optim.config import AuditConfig, OptimizerConfig, ScheduleConfig, StageConfig
from sparsecl.topology.config import TopologyConfig
from sparsecl.wandb_run import WandbConfig


@dataclass(frozen=True, kw_only=True)
class PhasesConfig:
    """How long each domain is trained, in which order, and what happens at the borders."""

    steps: int | tuple[int, ...] | None = None
    """Optimizer steps per phase; one number, or one per phase. 200 if neither this nor tokens."""

    tokens: int | tuple[int, ...] | None = None
    """Training tokens per phase, in place of steps; rounded up to whole steps."""

    order: tuple[str, ...] = ()
    """Domain trained in each phase; a domain may come again. Empty = the order of data.domains."""

    stages: tuple[StageConfig, ...] = (StageConfig(),)
    """The stages of every phase, in order."""

    patience: Annotated[int, Ge(0)] = 0
    """First phase only: end it after this many evaluations of its domain without improvement
    (0 = off; needs eval.every). Its steps or tokens are then the upper limit."""

    min_improvement: float = 0.01
    """Nats per token that count as an improvement for patience."""

    until_loss: tuple[float | None, ...] | None = None
    """One for each phase, from the first on: end the phase as soon as the validation loss on its
    domain, in nats per token, is at or below this (needs eval.every); null, or none for that phase:
    do not. Its steps or tokens are then the upper limit."""

    joint: bool = False
    """Train all phases as one: the sequences that they would read one after the other, shuffled.
    The upper bound of learning in sequence."""

    offset: Annotated[int, Ge(0)] = 0
    """What the first phase is numbered in the names of random streams. A domain trained alone
    reads with it what it reads in the sequence."""

    optimizer_state: Literal["keep", "reset"] = "keep"
    """At a phase border: keep the optimizer's moments, or start them at zero."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.steps is not None and self.tokens is not None:
            raise ValueError("steps and tokens are both given; give one of them")
        for name in ("steps", "tokens"):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if value == () or any(number is not None and number < 1 for number in numbers):
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not self.stages or abs(sum(stage.share for stage in self.stages) - 1.0) > 1e-6:
            raise ValueError("stages: the shares must add up to 1")
        if self.joint and (self.patience or self.until_loss is not None):
            raise ValueError(
                "joint has one phase of all domains: patience and until_loss, which watch one "
                "domain, have no meaning with it"
            )


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Sizes of a batch, in sequences of `model.context` tokens."""

    sequences: Annotated[int, Ge(1)] = 16
    """Global sequences per optimizer step."""

    micro: Annotated[int | None, Ge(1)] = None
    """Sequences per rank and micro-batch; the rest is gradient accumulation. null = the largest
    number up to 8 that divides the batch for the ranks at hand."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Validation of every domain."""

    every: Annotated[int, Ge(0)] = 50
    """Optimizer steps between evaluations inside a phase; 0 = at phase ends only."""

    tokens: Annotated[int | None, Ge(1)] = 65536
    """Validation tokens per domain for evaluations inside a phase, in windows of model.context
    spread evenly over all of its validation text; null = all."""

    end_tokens: Annotated[int | None, Ge(1)] = 1_048_576
    """The same for the scores that results stand on, before training and after each phase; null =
    all, and never less than `tokens`. Each time costs as much as training on a third as many."""

    kl_tokens: Annotated[int, Ge(0)] = 1024
    """Validation tokens per domain on which each later phase is asked how far it has moved the
    model: KL(model right after the domain's own phase || model now); 0 = off."""

    batch: Annotated[int, Ge(1)] = 16
    """Sequences per rank and forward pass."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def cap_at_ends(self) -> int | None:
        """Validation tokens per domain behind a row of the result matrix; None = all."""
        if self.tokens is None or self.end_tokens is None:
            return None
        return max(self.tokens, self.end_tokens)


@dataclass(frozen=True, kw_only=True)
class PlasticityConfig:
    """The signs of lost plasticity, measured before training and after every phase."""

    tokens: Annotated[int, Ge(0)] = 1024
    """Tokens of the probe, validation text of all domains in equal shares; 0 = no figures of
    activations."""

    every: Annotated[int, Ge(0)] = 25
    """Optimizer steps between looks at how much an update lowers the loss of its own micro-batch,
    which cost one forward pass each; 0 = never."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state is saved; the end of a phase always is."""

    every: Annotated[int, Ge(0)] = 0
    """Optimizer steps between checkpoints inside a phase; 0 = at phase ends only."""

    keep: Annotated[int, Ge(1)] = 2
    """Checkpoints kept; older ones are removed after a newer one is published."""

    initial: bool = False
    """Save the state before the first step as well, in initial/step_0 of the run folder. It stays,
    whatever `keep` is."""

    keep_steps: tuple[int, ...] = younger(())
    """Optimizer steps of the run whose state is saved as well, and once more in kept/step_N of the
    run folder, where it stays whatever `keep` is: a start for other runs (init_from)."""

    background: bool = False
    """Copy the state, then write it while training goes on. Needs memory for the copy."""

    on_failure: Literal["stop", "go_on"] = "stop"
    """When a checkpoint cannot be written (a full disk): stop with code 74, or go on training and
    try again at the next."""

    def __post_init__(self) -> None:
        check_bounds(self)
        steps = self.keep_steps
        if len(set(steps)) < len(steps) or min(steps, default=1) < 1:
            raise ValueError(
                f"keep_steps must be distinct and >= 1, got {list(steps)}; for the state before "
                "the first step set initial: true"
            )


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """What a run does when something goes wrong in it."""

    hang_seconds: Annotated[float, Ge(0), Lt(1e9)] = 120.0
    """A rank that gets nowhere for so long (and for 10 times its longest step) is ended with its
    stacks printed; 0 = never."""

    join_seconds: Annotated[float, Gt(0), Lt(1e9)] = 600.0
    """How long ranks wait for each other at the start."""

    max_bad_steps: Annotated[int, Ge(1)] = 3
    """Steps in a row whose gradient is not finite before the run stops; each is discarded on all
    ranks. Overflows of fp16 are not counted: the loss scale answers them."""

    spike_factor: float = 2.0
    """A logged training loss above this times the median of the last 50 is a spike; 0 = off."""

    rollback: bool = False
    """At a spike, return to the last checkpoint and leave out the data read since."""

    max_rollbacks: Annotated[int, Ge(0)] = 3
    """In the whole run; later spikes are only logged."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.spike_factor and not 1.0 < self.spike_factor < 1e9:
            raise ValueError(f"spike_factor must be > 1, or 0 = off, got {self.spike_factor}")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often training scalars are recorded, and where they are shown beside TensorBoard."""

    every: Annotated[int, Ge(1)] = 10
    """Optimizer steps between records."""

    wandb: WandbConfig | None = younger(None)

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the model is split; data parallelism takes the remaining ranks."""

    tensor: Annotated[int, Ge(1)] = 1
    """Ranks that share one copy of the model (tensor parallel size)."""

    sequence: bool = False
    """Spread the positions of a sequence over those ranks wherever the model is not split (norms,
    residual stream; Megatron's sequence parallelism): less memory for activations, as many bytes
    exchanged. `tensor` must divide model.context. Changes nothing at tensor = 1."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes, but for what DeepSpeed owns."""

    name: str = "run"
    """Name of the run, in its folder's name and in tables."""

    seed: Annotated[int, Ge(0)] = 0
    """Seed of every named random stream: masks, initial weights, order of the data."""

    init_from: str | None = None
    """A checkpoint folder whose weights the run begins with, with a new optimizer, or a run: its
    newest checkpoint; null = draw them. It may be denser than the run, which takes the weights that
    live. `tools/convert.py hf-import` makes one of foreign weights."""

    model: ModelConfig = field(default_factory=ModelConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    methods: MethodsConfig = field(default_factory=MethodsConfig)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of weights and activations; masters and moments are fp32 always."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    plasticity: PlasticityConfig = field(default_factory=PlasticityConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    health: HealthConfig = field(default_factory=HealthConfig)

    def __post_init__(self) -> None:
        check_bounds(self)
        check_name(self.name)

    @property
    def num_phases(self) -> int:
        """Phases that the run will have."""
        return 1 if self.phases.joint else len(self.phases.order or self.data.domains)

    @property
    def shape(self) -> ModelShape:
        """The sizes of the model, with the columns that a method gives it."""
        columns, lateral = self.methods.columns(self.num_phases)
        return replace(self.model.resolved(), columns=columns, lateral=lateral)
