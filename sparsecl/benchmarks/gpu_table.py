"""What one device gives: tokens/s, utilisation and memory of whole models, one after the other.

Sizes x (dense, masked and packed at 10 %, tiles at 20 %), each alone in memory: built, warmed up,
timed over whole steps of several micro-batches, and dropped. What does not fit says so, and the
next one has its turn. Utilisation counts the FLOPs of the products that are executed, attention as
the whole square (model/flops.py), over the data sheet and over a large product timed here.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsecl.benchmarks import process
from sparsecl.benchmarks.arms import make_arms
from sparsecl.engine.run_config import BatchConfig, RunConfig
from sparsecl.engine.speed_config import SpeedConfig
from sparsecl.errors import UserError
from sparsecl.model.config import PRESETS, ModelConfig, Preset

if TYPE_CHECKING:
    from sparsecl.engine.run import Prepared

DEFAULT_PRESETS: tuple[Preset, ...] = ("100m", "500m", "1b")
CASES = (("dense", 1.0), ("masked", 0.1), ("packed", 0.1), ("packed_block", 0.2))
DEFAULT_TILE = 64
MICRO_TOKENS = 16384  # fills an H100 at every size; the logits of GPT-2's vocabulary take 10 GB
ACCUMULATION = 8  # micro-batches of a step: an update costs what it does in a real run, or more

# tokens/s of the dense model that one H200 shall give in bf16: half of its measured 790 TFLOP/s.
GOALS = {"100m": 495e3, "500m": 110e3, "1b": 47e3}


def run_configs(options: argparse.Namespace) -> dict[str, dict[str, RunConfig]]:
    """By preset and name of the arm.

    Raises:
        UserError: if a size is out of range.
    """
    return {
        preset: {name: _run_config(options, preset, name, density) for name, density in CASES}
        for preset in options.presets
    }


def _run_config(
    options: argparse.Namespace, preset: Preset, name: str, density: float
) -> RunConfig:
    tile = (options.block or DEFAULT_TILE) if name.endswith("_block") else None
    micro = options.micro or max(1, MICRO_TOKENS // PRESETS[preset][3])
    try:
        arm = make_arms(density, [name], kind=options.kind, block=tile)[-1]
        batch = BatchConfig(sequences=micro * ACCUMULATION, micro=micro)
        speed = SpeedConfig(compile=options.compile, peak_tflops=options.peak_tflops)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    return RunConfig(
        name=f"{preset}-{name}",
        model=ModelConfig(preset=preset, activation_checkpointing=options.activation_checkpointing),
        batch=batch,
        topology=arm.topology,
        precision=options.precision,
        speed=speed,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Build, time and drop every model in turn.

    Raises:
        UserError: if the device, the precision or the DeepSpeed config does not fit.
    """
    from sparsecl import dist
    from sparsecl.model.peaks import peak_flops

    machine, prepared = process.start(options, run_configs(options))
    dist.init()
    sheet = peak_flops(machine["device"], options.precision, peak_tflops=options.peak_tflops)
    peaks = {"sheet": sheet, "product": product_flops(options.precision)}
    rows = []
    for preset, runs in prepared.items():
        for name in list(runs):
            run = runs.pop(name)  # its masks go with it
            rows.append({"preset": preset, "arm": name, **_row(options, run, peaks)})
    dist.shutdown()
    return {"environment": process.finish(machine), "peaks": peaks, "rows": rows}


def _row(
    options: argparse.Namespace, run: "Prepared", peaks: Mapping[str, float | None]
) -> dict[str, Any]:
    import torch

    from sparsecl.benchmarks.memory import ledger
    from sparsecl.model.peaks import utilisation

    backends, _ = process.backends_of(run)
    config, schedule = run.config, run.schedule
    flops = _executed(run, options.vocab)
    formula = ledger(run, options.vocab, length=schedule.shape.context, backends=backends)
    row: dict[str, Any] = {
        "density": config.topology.density if run.topologies else 1.0,
        "micro": schedule.micro,
        "tokens_per_step": schedule.tokens_per_step,
        "flops_per_token": flops,
        "formula_bytes": formula["state"] + formula["pass"],
    }
    try:
        seconds, memory = _time(options, run, backends)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {**row, "problem": "out of memory"}
    speed = schedule.tokens_per_step / statistics.median(seconds["step"])
    return {
        **row,
        "seconds": seconds,
        "tokens_per_second": speed,
        "utilisation": {name: utilisation(speed, flops, peak) for name, peak in peaks.items()},
        "peak_bytes": memory,
    }


def _time(
    options: argparse.Namespace, run: "Prepared", backends: Mapping[str, Any]
) -> tuple[dict[str, list[float]], int | None]:
    """Seconds of every step that counts, and the peak of the GPU's memory (None on a CPU)."""
    import torch

    from sparsecl.benchmarks.steps import Timed

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    timed = Timed(run, options.vocab, backends)
    shape = (run.config.batch.sequences, run.schedule.shape.context)
    try:
        process.take_turns(
            [run.config.name],
            lambda name, index, counts: timed.step(
                process.random_rows(options, index, shape), keep=counts
            ),
            warmup=options.warmup,
            rounds=options.rounds,
            label=run.config.name,
        )
        timed.built.guard.audit(options.warmup + options.rounds)
        return timed.seconds, torch.cuda.max_memory_allocated() if cuda else None
    finally:
        timed.close()


def _executed(run: "Prepared", vocab_size: int) -> int:
    """FLOPs per token of the products that the arm really does."""
    from sparsecl.model.flops import (
        count_parameters,
        multiplied_weights,
        training_flops_per_token,
    )

    shape, topology = run.schedule.shape, run.config.topology
    chosen = dict.fromkeys(run.topologies, topology.backend)
    counts = count_parameters(shape, vocab_size, run.topologies)
    multiplied = multiplied_weights(shape, run.topologies, chosen)
    return training_flops_per_token(
        shape, counts, role=topology.role, multiplied=multiplied
    ).executed


def product_flops(precision: str, *, size: int | None = None, rounds: int = 10) -> float:
    """FLOP/s of a large square product on this device: the best of `rounds`."""
    import torch

    from sparsecl import dist
    from sparsecl.engine.topology import DTYPES

    cuda = torch.cuda.is_available()
    size = size or (8192 if cuda else 512)
    a, b = (torch.randn(size, size, device=dist.device(), dtype=DTYPES[precision]) for _ in "ab")
    best = float("inf")
    for _ in range(rounds):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        _ = a @ b
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def table(result: Mapping[str, Any]) -> str:
    """One line for each model: speed, utilisation, memory in GB (10^9 bytes)."""
    peaks = result["peaks"]
    sheet = "unknown" if peaks["sheet"] is None else f"{peaks['sheet'] / 1e12:,.4g} TFLOP/s"
    is_goal = "H200" in result["environment"]["device"]
    lines = [
        f"{result['environment']['device']}; data sheet {sheet}, a large product here "
        f"{peaks['product'] / 1e12:,.4g} TFLOP/s",
        f"{'model':<7}{'arm':<14}{'density':>8}{'micro':>7}{'step ms':>11}{'tokens/s':>12}"
        f"{'MFU':>8}{'of product':>12}{'peak GB':>9}{'formula':>9}"
        + ("   of goal" if is_goal else ""),
    ]
    for row in result["rows"]:
        head = f"{row['preset']:<7}{row['arm']:<14}{row['density']:>8g}{row['micro']:>7}"
        formula = f"{row['formula_bytes'] / 1e9:>9.2f}"
        if "problem" in row:
            lines.append(f"{head}   {row['problem']}; by the formulas {formula.strip()} GB")
            continue
        step = statistics.median(row["seconds"]["step"]) * 1e3
        used, memory = row["utilisation"], row["peak_bytes"]
        mfu = "-" if used["sheet"] is None else f"{used['sheet']:.1%}"
        peak = "-" if memory is None else f"{memory / 1e9:.2f}"
        goal = GOALS.get(row["preset"]) if is_goal else None
        lines.append(
            f"{head}{step:>11.2f}{row['tokens_per_second']:>12,.0f}{mfu:>8}"
            f"{used['product']:>12.1%}{peak:>9}{formula}"
            + (f"{row['tokens_per_second'] / goal:>10.1%}" if goal else "")
        )
    return "\n".join(lines)
