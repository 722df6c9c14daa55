"""A run on more and more GPUs: step time, checkpoints, and what failures leave of the time.

Two ways to grow: with the run's own batch, whose ranks get fewer sequences each (the experiment
stays what it is), and with a batch that grows with the ranks (the machine's scaling alone).

Failures come at random, at one rate for each node; each loses the work since the last checkpoint
and the time of a restart. Goodput is useful step time over wall time, found by drawing failures.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from sparsecl import seeding
from sparsecl.engine.run_config import BatchConfig
from sparsecl.planning.estimate import Estimate, estimate
from sparsecl.planning.machines import Machine
from sparsecl.planning.subjects import Subject

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
NUM_FAILURES = 20_000
# 7.9 h between failures at 1,024 GPUs, 128 nodes: Kokolis et al. 2024, arXiv 2410.21680.
NODE_MTTF_HOURS = 7.9 * 128
# Requeue, imports, loading, the first step: assumed.
RESTART_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of GPUs."""

    gpus: int
    sequences: int
    micro: int
    accumulation: int
    step_seconds: float
    tokens_per_second: float
    efficiency: float
    """Tokens/s per GPU, against those of the first row."""

    exposed_share: float
    """Of a step: communication that nothing hides."""

    checkpoint_bytes: int
    save_seconds: float
    mttf_hours: float
    """Of the whole job."""

    interval_seconds: float
    """Between checkpoints, by Young's formula."""

    interval_steps: int
    goodput: float
    run_hours: float
    """Wall time of the run, failures included."""

    fits: bool


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, and how long it takes."""

    node_mttf_hours: float = NODE_MTTF_HOURS
    restart_seconds: float = RESTART_SECONDS


def young_interval(mttf: float, save: float) -> float:
    """Seconds between checkpoints that waste least: sqrt(2 MTTF save).

    Young 1974, CACM 17(9). All in seconds.
    """
    return math.sqrt(2.0 * mttf * save)


def simulate_goodput(
    interval: float, save: float, mttf: float, restart: float, *, seed: int = 0
) -> float:
    """Share of wall time that ends up as useful steps, over many failures.

    Work and saves alternate; a failure undoes what came after the last whole save. Restarts do
    not fail. All in seconds; the times between failures are exponential.
    """
    rng = seeding.stream(seed, "goodput")
    alive = rng.exponential(mttf, size=NUM_FAILURES)
    useful = np.floor(alive / (interval + save)) * interval
    return float(useful.sum() / (alive.sum() + NUM_FAILURES * restart))


def own_batch(
    subject: Subject, machine: Machine, faults: Faults, *, disk: float
) -> list[Row | str]:
    """Rows of the run as it is; a text where its batch does not divide."""
    rows: list[Row | str] = []
    first = None
    for gpus in SIZES:
        tensor, sequences = subject.config.parallel.tensor, subject.config.batch.sequences
        dp_size, rest = divmod(gpus, tensor)
        if rest or sequences % dp_size:
            rows.append(f"{gpus:>5}  batch.sequences={sequences} does not divide over {dp_size}")
            continue
        micro = _micro(subject, sequences // dp_size)
        first, row = _row(subject, machine, gpus, sequences, micro, faults, disk, first)
        rows.append(row)
    return rows


def grown_batch(
    subject: Subject, machine: Machine, faults: Faults, *, disk: float
) -> list[Row | str]:
    """Rows with as many sequences per rank as the run has at the first size."""
    rows: list[Row | str] = []
    first = None
    tensor = subject.config.parallel.tensor
    per_rank = max(1, subject.config.batch.sequences // max(1, SIZES[0] // tensor))
    micro = _micro(subject, per_rank)
    for gpus in SIZES:
        if gpus % tensor:
            rows.append(f"{gpus:>5}  parallel.tensor={tensor} does not divide")
            continue
        sequences = per_rank * (gpus // tensor)
        first, row = _row(subject, machine, gpus, sequences, micro, faults, disk, first)
        rows.append(row)
    return rows


def _micro(subject: Subject, per_rank: int) -> int:
    """The config's micro-batch, or the largest below that divides a rank's sequences."""
    limit = min(subject.config.batch.micro or 8, per_rank)
    return next(size for size in range(limit, 0, -1) if per_rank % size == 0)


def _row(
    subject: Subject, machine: Machine, gpus: int, sequences: int, micro: int, faults: Faults,
    disk: float, first: Estimate | None,
) -> tuple[Estimate, Row]:  # fmt: skip
    batch = BatchConfig(sequences=sequences, micro=micro)
    found = estimate(
        replace(subject, config=replace(subject.config, batch=batch)), machine, gpus, disk=disk
    )
    first = first or found
    time, nodes = found.time, max(1, gpus // machine.per_node)
    mttf = faults.node_mttf_hours * 3600 / nodes
    interval = young_interval(mttf, found.save_seconds)
    goodput = simulate_goodput(interval, found.save_seconds, mttf, faults.restart_seconds)
    speed = found.tokens_per_second / gpus
    cost = found.cost
    row = Row(
        gpus=gpus,
        sequences=sequences,
        micro=found.schedule.micro,
        accumulation=found.schedule.accumulation,
        step_seconds=time.step,
        tokens_per_second=found.tokens_per_second,
        efficiency=speed / (first.tokens_per_second / first.gpus),
        exposed_share=time.exposed / time.step,
        checkpoint_bytes=found.checkpoint_bytes,
        save_seconds=found.save_seconds,
        mttf_hours=mttf / 3600,
        interval_seconds=interval,
        interval_steps=max(1, round(interval / time.step)),
        goodput=goodput,
        run_hours=(cost.train_seconds / goodput + cost.evaluation_seconds) / 3600,
        fits=found.fit.fits,
    )
    return first, row
