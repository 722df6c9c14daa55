"""One run on so many GPUs: everything that the other parts say of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sparsecl.data.config import DataConfig, TokenizerConfig
from sparsecl.data.known import known_tokens
from sparsecl.engine import ledger
from sparsecl.engine.deepspeed import ds_config
from sparsecl.engine.ledger import RunFlops
from sparsecl.engine.observe.drift import BYTES_PER_TOKEN
from sparsecl.engine.reading import planned_tokens, reading_text
from sparsecl.engine.run import run_numbers, vocabulary
from sparsecl.engine.run_config import BatchConfig, RunConfig
from sparsecl.engine.schedule import JOINT, Schedule, make_schedule, rank_layout
from sparsecl.errors import UserError
from sparsecl.metrics.passes import pass_warnings, passes
from sparsecl.model.config import padded_vocabulary
from sparsecl.model.flops import column_shares, heard_flops
from sparsecl.model.memory import Layout, parameter_sizes
from sparsecl.model.shapes import layer_shapes
from sparsecl.planning.costs import RunCost, run_cost
from sparsecl.planning.fit import Buffers, Fit, buffers, fit, largest_micro
from sparsecl.planning.machines import Machine
from sparsecl.planning.roofline import StepTime, Work, step_time
from sparsecl.planning.subjects import Subject
from sparsecl.planning.traffic import Exchange, Flow, Wiring, flows


@dataclass(frozen=True)
class Estimate:
    """A run, planned."""

    subject: Subject
    machine: Machine
    gpus: int
    schedule: Schedule
    stage: int
    flops: RunFlops
    fit: Fit
    largest_micro: int
    traffic: list[Flow]
    time: StepTime
    checkpoint_bytes: int
    save_seconds: float
    cost: RunCost
    passes: dict[str, float]
    """Domain -> planned passes over its training text; empty before the text is prepared."""
    reading: str
    """The same in words."""
    warnings: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        """Of the whole job."""
        return self.schedule.tokens_per_step / self.time.step

    def utilisation(self, peak: float) -> float:
        """Share of `peak`, FLOP/s of a GPU, that executed FLOPs take; none counts twice that is
        recomputed."""
        return self.flops.per_token.executed * self.tokens_per_second / self.gpus / peak


def estimate(subject: Subject, machine: Machine, gpus: int, *, disk: float) -> Estimate:
    """Plan a run.

    Args:
        disk: bytes/s at which all ranks together write a checkpoint.

    Raises:
        UserError: if the run is not possible for a reason that has nothing to do with its size.
    """
    config, problems = _possible(subject.config, gpus)
    schedule = make_schedule(config, world_size=gpus)
    numbers = run_numbers(config, schedule)
    resolved = ds_config.resolve(subject.ds_path, numbers)
    zero = resolved.config["zero_optimization"]
    overlap = bool(zero.get("overlap_comm", resolved.stage == 3))
    gpu = not machine.name.startswith("CPU")
    layout = rank_layout(config, schedule, resolved, vocabulary(config), gpu=gpu)
    found, largest = _fit(
        subject, config, schedule, layout, machine, zero, resolved.offload, overlap
    )
    sizes = _sizes(subject, config)
    backends = _backends(config, subject.topologies)
    exchange = _exchange(schedule, layout, zero, sizes)
    traffic = flows(exchange)
    work = _work(subject, schedule, layout, sizes, resolved.offload, backends)
    place = Wiring(machine, layout.tp_size, layout.dp_size)
    time = step_time(work, machine, place, traffic, overlap=overlap)
    flops = ledger.flops(config, schedule, subject.counts, subject.topologies)
    saved = checkpoint_bytes(subject, schedule, layout.num_moments)
    compute = time.compute - time.optimizer
    tokens_per_rank = schedule.tokens_per_step / schedule.dp_size
    sizes = _known(config.data, config.tokenizer, config.seed)
    train, validation = ({name: of[k] for name, of in sizes.items()} for k in (0, 1))
    planned = planned_tokens(config, schedule)
    cost = run_cost(
        config,
        schedule,
        gpus=gpus,
        validation=validation,
        step_seconds=time.step,
        # A third of a training pass, as for its products.
        forward_token_seconds=compute / 3 / tokens_per_rank,
        save_seconds=saved / disk,
    )
    warnings = [
        *problems,
        *resolved.warnings,
        *_warnings(subject, found, schedule, machine, largest, validation),
        *pass_warnings(planned, train),
    ]
    return Estimate(
        subject, machine, gpus, schedule, resolved.stage, flops, found, largest, traffic, time,
        saved, saved / disk, cost, passes(planned, train), reading_text(config, schedule, train),
        tuple(warnings),
    )  # fmt: skip


@cache
def _known(
    data: DataConfig, tokenizer: TokenizerConfig, seed: int
) -> Mapping[str, tuple[int, int]]:
    return known_tokens(data, tokenizer, seed=seed)


def checkpoint_bytes(subject: Subject, schedule: Schedule, num_moments: int) -> int:
    """fp32 master and moments of what lives, the live sets as bits or indices, and what the KL of
    old and new model is measured on, at the end of the run.

    Role update keeps every weight, so every weight is saved.
    """
    counts = subject.counts
    whole = subject.config.topology.role == "update"
    kept = counts.total if whole else counts.live
    shapes = {layer.name: layer for layer in layer_shapes(subject.config.shape)}
    masks = sum(shapes[name].num_cells // 8 for name in subject.topologies)
    # Padding rows of the embedding are saved with it.
    width, vocab = subject.config.shape.width, vocabulary(subject.config)
    rows = padded_vocabulary(vocab, subject.config.parallel.tensor) - vocab
    rows *= (1 if subject.config.shape.tied else 2) * subject.config.shape.columns
    trained = {phase.domain for phase in schedule.phases} - {JOINT}
    references = len(trained) * subject.config.eval.kl_tokens * BYTES_PER_TOKEN
    return 4 * (1 + num_moments) * (kept + rows * width) + masks + references


def _possible(config: RunConfig, gpus: int) -> tuple[RunConfig, list[str]]:
    """The config, or the nearest one that divides over the GPUs, and what is wrong with it."""
    try:
        make_schedule(config, world_size=gpus)
        return config, []
    except UserError as error:
        problem = str(error)
    tensor = config.parallel.tensor
    if gpus % tensor:
        raise UserError(problem)
    dp_size = gpus // tensor
    per_rank = -(-config.batch.sequences // dp_size)
    limit = min(config.batch.micro or 8, per_rank)
    micro = next(size for size in range(limit, 0, -1) if per_rank % size == 0)
    sequences = per_rank * dp_size
    other = replace(config, batch=BatchConfig(sequences=sequences, micro=micro))
    make_schedule(other, world_size=gpus)  # what is still wrong has nothing to do with the batch
    note = f"{problem}. Planned here with batch.sequences={sequences}, batch.micro={micro}."
    return other, [note]


def _sizes(subject: Subject, config: RunConfig) -> list[int]:
    return parameter_sizes(
        config.shape,
        vocabulary(config),
        subject.topologies,  # type: ignore[arg-type]
        config.topology,
        tp_size=config.parallel.tensor,
        added=ledger.added_sizes(config),
    )


def _fit(
    subject: Subject, config: RunConfig, schedule: Schedule, layout: Layout, machine: Machine,
    zero: Mapping[str, Any], offload: bool, overlap: bool,
) -> tuple[Fit, int]:  # fmt: skip
    """The schedule's own micro-batch in memory, and the largest that fits."""
    vocab, sizes = vocabulary(config), _sizes(subject, config)
    backends: Any = _backends(config, subject.topologies)

    def of(layout: Layout) -> Fit:
        topologies: Any = subject.topologies
        held = ledger.rank_memory(config, vocab, topologies, layout, backends=backends)
        extra: Buffers = buffers(zero, sizes, layout, overlap=overlap)
        return fit(held, extra, schedule.shape, vocab, layout, machine, offload=offload)

    return of(layout), largest_micro(lambda other: of(other).fits, layout)


def _backends(config: RunConfig, topologies: Mapping[str, Any]) -> dict[str, str]:
    """By layer name; `auto` is measured when a run starts and counts as dense here."""
    backend = config.topology.backend
    return dict.fromkeys(topologies, "dense" if backend == "auto" else backend)


def _exchange(
    schedule: Schedule, layout: Layout, zero: Mapping[str, Any], sizes: list[int]
) -> Exchange:
    return Exchange(
        shape=schedule.shape,
        sizes=sizes,
        zero_stage=layout.zero_stage,
        element=layout.element,
        tp_size=layout.tp_size,
        dp_size=layout.dp_size,
        micro=layout.micro,
        accumulation=schedule.accumulation,
        persistence=layout.persistence,
        reuse_distance=int(zero.get("stage3_max_reuse_distance", 1_000_000_000)),
        prefetch=int(zero.get("stage3_prefetch_bucket_size", 50_000_000)),
        bucket=int(zero.get("reduce_bucket_size", 500_000_000)),
        loss_chunk=layout.loss_chunk,
        activation_checkpointing=layout.activation_checkpointing,
        sequence=layout.sequence,
    )


def _work(
    subject: Subject, schedule: Schedule, layout: Layout, sizes: list[int], offload: bool,
    backends: Mapping[str, str],
) -> Work:  # fmt: skip
    topology, tp = subject.config.topology, layout.tp_size
    by_backend = {"dense": 0, "block": 0, "csr": 0, "native": 0}
    sparse_cells = sparse_live = 0
    for layer in layer_shapes(schedule.shape):
        found = subject.topologies.get(layer.name)
        backend = backends.get(layer.name, "dense")
        backend = backend if backend in by_backend else "dense"  # as model/flops.py counts it
        live = layer.num_cells if found is None else found.num_live
        by_backend[backend] += layer.num_cells if backend == "dense" else live
        if found is not None and backend == "dense" and live < layer.num_cells:
            sparse_cells, sparse_live = sparse_cells + layer.num_cells, sparse_live + live
    packed = topology.storage == "packed"
    rows, shape = padded_vocabulary(vocabulary(subject.config), tp), schedule.shape
    shares = column_shares(shape, [phase.num_steps for phase in schedule.phases])
    forward_only = sum(share * place for place, share in enumerate(shares))
    # The matrices of all columns are equal; one goes both ways, those before it forward.
    used = (1 + forward_only / 3) / shape.columns
    by_backend = {backend: used * weights for backend, weights in by_backend.items()}
    return Work(
        shape=shape,
        precision=subject.config.precision,
        tokens=layout.num_tokens(shape),
        accumulation=schedule.accumulation,
        tp_size=tp,
        vocab_local=rows // tp,
        dense_weights=by_backend["dense"]
        + rows * shape.width
        + heard_flops(shape, shares) / 6
        + subject.counts.added_multiplied,
        forward_only=forward_only,
        block_weights=by_backend["block"],
        csr_weights=by_backend["csr"],
        native_weights=by_backend["native"],
        masked_cells=0 if packed else sparse_cells // tp,
        packed_cells=sparse_cells // tp if packed else 0,
        packed_live=sparse_live // tp if packed else 0,
        keep_expansion=topology.keep_expansion,
        state_elements=sum(sizes) // (layout.dp_size if layout.zero_stage else 1),
        offload=offload,
        activation_checkpointing=layout.activation_checkpointing,
        sequence=layout.sequence,
        compiled=subject.config.speed.compile,
        loss_chunk=layout.loss_chunk,
    )


def _warnings(
    subject: Subject,
    found: Fit,
    schedule: Schedule,
    machine: Machine,
    largest: int,
    validation: Mapping[str, int],
) -> list[str]:
    config, warnings = subject.config, []
    gib = 2**30
    if not found.fits:
        more = f"the largest that fits is batch.micro={largest}" if largest else (
            "not even batch.micro=1 fits: raise --tensor, the ZeRO stage or the number of GPUs, "
            "store packed, or set model.activation_checkpointing"
        )  # fmt: skip
        warnings.append(
            f"does not fit: {found.needed / gib:.1f} GiB per rank at batch.micro={schedule.micro}, "
            f"{machine.name} has {found.available / gib:.1f} GiB; {more}"
        )
    if config.parallel.tensor > machine.per_node:
        warnings.append(
            f"parallel.tensor={config.parallel.tensor} spans nodes of {machine.per_node} GPUs: "
            "every layer waits for the network"
        )
    if config.topology.backend == "auto" and subject.topologies:
        warnings.append("topology.backend=auto is measured when a run starts; planned as dense")
    caps = {"eval.tokens": config.eval.tokens, "eval.end_tokens": config.eval.cap_at_ends}
    for key in [key for key, cap in caps.items() if cap is None and not validation]:
        warnings.append(f"{key}=null: these evaluations are as long as the data and not counted")
    return warnings
