"""What tools/gpu_check.py does in its sections; a process for each (gpu_check.py starts it).

    python -m sparsecl.benchmarks.gpu_sections NAME DEVICE ROWS.jsonl

A section is a generator of rows, written as they come. A row with `problem` fails its section. On a
CPU models are tiny, and kernels, NCCL and the guard against waiting are not there: the code runs,
and says nothing about a GPU. Tolerances were never tried on one.
"""

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsecl.benchmarks import process
from sparsecl.benchmarks.arms import BASELINE, make_arms
from sparsecl.benchmarks.steps import Timed
from sparsecl.checkout import DS_CONFIGS, ROOT, TRAIN
from sparsecl.engine.run_config import BatchConfig, RunConfig
from sparsecl.engine.speed_config import SpeedConfig
from sparsecl.model.config import ModelConfig
from sparsecl.optim.config import OptimizerConfig

Row = dict[str, Any]
STORAGES = ("masked", "packed", "packed_block")
SEQUENCES, MICRO = 8, 4

# Largest difference of a loss (nats) from another device or another order of sums. bf16 keeps 8
# bits: at a loss of 6 its steps are 0.03.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}


@dataclass(frozen=True)
class Sizes:
    """Of the models of all sections but `speed`."""

    layers: int
    width: int
    heads: int
    context: int
    vocab: int
    tile: int
    steps: int


FULL = Sizes(layers=2, width=256, heads=4, context=128, vocab=512, tile=64, steps=20)
TINY = Sizes(layers=1, width=64, heads=2, context=16, vocab=64, tile=16, steps=4)


def is_tiny() -> bool:
    """True on a CPU."""
    from sparsecl import dist

    return dist.device().type == "cpu"


def sizes() -> Sizes:
    """Those of this device."""
    return TINY if is_tiny() else FULL


def run_config(
    storage: str, precision: str, given: Sizes, *, compiled: bool = False, micro: int = MICRO
) -> RunConfig:
    """A small run on a quarter of the weights."""
    tile = given.tile if storage.endswith("_block") else None
    shape = {name: getattr(given, name) for name in ("layers", "width", "heads", "context")}
    return RunConfig(
        name=storage,
        model=ModelConfig(preset=None, **shape),
        topology=make_arms(0.25, [storage], block=tile)[0 if storage == BASELINE else -1].topology,
        batch=BatchConfig(sequences=SEQUENCES, micro=micro),
        # A large eps: where a gradient is zero but for rounding, Adam's step is its sign.
        optimizer=OptimizerConfig(lr=1e-3, eps=1e-5),
        precision=precision,  # pyright: ignore[reportArgumentType]
        speed=SpeedConfig(compile=compiled),
    )


def timed(config: RunConfig, stage: int, vocab: int) -> Timed:
    """Model, optimizer and engine of a run, checked first."""
    from sparsecl import dist
    from sparsecl.engine.run import check

    dist.init()
    return Timed(check(config, DS_CONFIGS / f"zero{stage}.json", None), vocab)


def losses_of(config: RunConfig, stage: int, given: Sizes) -> list[float]:
    """Loss of each step; two batches in turn, so that they are learned."""
    run = timed(config, stage, given.vocab)
    options, shape = argparse.Namespace(vocab=given.vocab), (SEQUENCES, given.context)
    found = []
    try:
        for step in range(given.steps):
            run.step(process.random_rows(options, step % 2, shape), keep=False)
            found.append(run.loss)
    finally:
        run.close()
    return found


def compared(row: Row, found: Sequence[float], expected: Sequence[float], limit: float) -> Row:
    """The row with the largest difference of two curves, and whether that is too much."""
    gap = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    row = {**row, "first": found[0], "last": found[-1], "largest difference": gap}
    if not gap <= limit:  # a NaN is no difference
        row["problem"] = f"{name_of(row)}: losses differ by {gap:.3g}, allowed are {limit:g}"
    return row


def name_of(row: Row) -> str:
    """What a row is about, in words."""
    return " ".join(str(row[name]) for name in ("precision", "storage", "stage") if name in row)


# ---- sections ------------------------------------------------------------------------------


def environment() -> Iterator[Row]:
    """What is there."""
    from sparsecl.engine.devices import attention_kernel
    from sparsecl.engine.resume import environment as record
    from sparsecl.engine.topology import DTYPES
    from sparsecl.sparse import kernels

    yield record.environment()
    for precision in ("fp32", "bf16"):
        yield {
            "precision": precision,
            "attention": attention_kernel(FULL.heads, FULL.width // FULL.heads, DTYPES[precision]),
        }
    lacking = kernels.lacking()
    row: Row = {"kernels": lacking or "can be made"}
    if lacking and not is_tiny():
        row["problem"] = lacking
    yield row


def tests() -> Iterator[Row]:
    """The tests with the mark `gpu`; they are in a checkout only."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [str(path) for path in paths if "mark.gpu" in path.read_text(encoding="utf-8")]
    if not marked:
        yield {"tests": "none here: not a checkout"}
        return
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run([*words, *marked], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    row: Row = {"tests": last}
    if done.returncode or not (is_tiny() or re.search(r"\d+ passed", last)):
        row["problem"] = last or f"pytest ended with {done.returncode}"
    yield row


def losses() -> Iterator[Row]:
    """All stages and storages beside a CPU, in fp32; one stage in bf16."""
    given = sizes()
    on_cpu = {(row["precision"], row["storage"]): row["losses"] for row in _on_a_cpu(given)}
    in_fp32 = (0, 3) if is_tiny() else (0, 1, 2, 3)
    for precision, stages in (("fp32", in_fp32), ("bf16", (1,))):
        for storage in STORAGES:
            for stage in stages:
                found = losses_of(run_config(storage, precision, given), stage, given)
                row = {"precision": precision, "storage": storage, "stage": stage}
                expected = on_cpu[precision, storage]
                yield compared(row, found, expected, TOLERANCE[precision])


def _on_a_cpu(given: Sizes) -> list[Row]:
    """The rows of `on_cpu`, from a process that sees no GPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        kind = "tiny" if given == TINY else "full"
        subprocess.run([sys.executable, "-m", __spec__.name, kind, "cpu", str(path)], check=True)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def on_cpu(given: Sizes) -> Iterator[Row]:
    """What `losses` compares with. Not a section."""
    for precision in ("fp32", "bf16"):
        for storage in STORAGES:
            found = losses_of(run_config(storage, precision, given), 1, given)
            yield {"precision": precision, "storage": storage, "losses": found}


def repeat() -> Iterator[Row]:
    """A run, and the same run killed and resumed. Equal bits show that two runs are equal up to
    there, and that a resume loses nothing; without `deterministic` they are not promised."""
    cases = ((1, False), (1, True), (3, True))
    for stage, deterministic in cases[2:] if is_tiny() else cases:
        with tempfile.TemporaryDirectory() as folder:
            row: Row = {"stage": stage, "deterministic": deterministic}
            runs = [Path(folder) / name for name in ("whole", "parts")]
            codes = [_train(runs[0], stage, deterministic)]
            codes.append(_train(runs[1], stage, deterministic, "--inject", "kill@step:9"))
            codes.append(_train(runs[1], stage, deterministic, "--resume", "must"))
            if codes != [0, -9, 0]:
                yield {**row, "problem": f"exit codes {codes} in place of [0, -9, 0]"}
                continue
            row["largest difference"] = gap = _difference(*runs)
            if deterministic and gap:
                row["problem"] = f"stage {stage}: weights differ by {gap:.3g} after a resume"
            yield row


def _train(run_dir: Path, stage: int, deterministic: bool, *more: str) -> int:
    """Train 12 steps with a checkpoint after the sixth. Returns the exit code."""
    given = sizes()
    domain = "{train_tokens: 20000, validation_tokens: 2000, num_symbols: 32}"
    settings = (
        f"model={{preset: null, layers: {given.layers}, width: {given.width}, "
        f"heads: {given.heads}, context: {given.context}}}",
        "topology={density: 0.25, storage: packed}",
        "tokenizer.kind=bytes",
        f"data.domains=[{{name: a, source: synthetic, synthetic: {domain}}}]",
        f"data.cache_dir={run_dir.parent / 'cache'}",
        "phases.steps=12",
        "batch={sequences: 8, micro: 4}",
        "eval={every: 0, tokens: 512, end_tokens: 512}",
        "checkpoint={every: 6, background: true}",
        "precision=bf16",
        f"speed.deterministic={str(deterministic).lower()}",
    )
    words = [sys.executable, str(TRAIN), "--ds_config", str(DS_CONFIGS / f"zero{stage}.json")]
    words += ["--run_dir", str(run_dir), *more, "--set", *settings]
    return subprocess.run(words).returncode


def _difference(first: Path, second: Path) -> float:
    """Of the fp32 weights of two finished runs, the largest."""
    from sparsecl.checkpoint.find import find_checkpoint
    from sparsecl.checkpoint.reader import Reader

    one, other = (Reader(find_checkpoint(run).folder) for run in (first, second))
    gaps = [
        (one.read("master", name) - other.read("master", name)).abs().max()
        for name in one.manifest.parameters
    ]
    return max(float(gap) for gap in gaps)


def waits() -> Iterator[Row]:
    """Forward and backward of a micro-batch that is not the last one of its step."""
    import torch

    from sparsecl import dist

    given = sizes()
    for storage in STORAGES:
        run = timed(run_config(storage, "bf16", given), 1, given.vocab)
        options, shape = argparse.Namespace(vocab=given.vocab), (SEQUENCES, given.context)
        row: Row = {"storage": storage, "stage": 1, "waits": 0}
        for step in range(2):  # kernels are compiled and tuned, buffers made
            run.step(process.random_rows(options, step, shape), keep=False)
        rows = torch.from_numpy(process.random_rows(options, 2, shape)).to(dist.device())[:MICRO]
        try:
            with _no_waits():
                found, _ = run.built.engine(rows[:, :-1], rows[:, 1:])
                run.built.engine.backward(found.mean())
                run.built.engine.step()
        except RuntimeError as error:
            row |= {"waits": "some", "problem": f"{name_of(row)}: {str(error).splitlines()[0]}"}
        yield row
        run.close()


def _no_waits() -> AbstractContextManager[Any]:
    """On a GPU, what makes the host wait is an error in here."""
    import torch

    if is_tiny():
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    torch.cuda.set_sync_debug_mode("error")
    stack.callback(torch.cuda.set_sync_debug_mode, "default")
    return stack


def nccl() -> Iterator[Row]:
    """The collectives of training on tensors of each type that they get; nothing may change."""
    import torch
    import torch.distributed as torch_dist

    from sparsecl import dist

    dist.init()
    for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8):
        given = torch.arange(100, device=dist.device()).to(dtype)
        row: Row = {"type": str(dtype).removeprefix("torch.")}
        for name in ("all_reduce", "broadcast", "all_gather", "reduce_scatter"):
            found = given.clone()
            if name == "all_reduce":
                torch_dist.all_reduce(found)
            elif name == "broadcast":
                torch_dist.broadcast(found, 0)
            elif name == "all_gather":
                torch_dist.all_gather_into_tensor(found, given)
            else:
                torch_dist.reduce_scatter_tensor(found, given)
            row[name] = "right" if torch.equal(found, given) else "wrong"
            if row[name] == "wrong":
                row["problem"] = f"{name} of {row['type']} has changed its values"
        yield row
    dist.shutdown()


def compiled() -> Iterator[Row]:
    """Compiled blocks beside plain ones."""
    given = replace(sizes(), steps=4)
    precision = "fp32" if is_tiny() else "bf16"
    for storage in ("packed",) if is_tiny() else (BASELINE, "masked", "packed"):
        plain, found = (
            losses_of(run_config(storage, precision, given, compiled=on), 1, given)
            for on in (False, True)
        )
        row = {"precision": precision, "storage": storage, "stage": 1}
        yield compared(row, found, plain, TOLERANCE[precision])
    yield from compile_times()


def compile_times() -> Iterator[Row]:
    """The graphs that all blocks share, and the first pass forward and backward of two of them:
    without any cache, and with what torch has then kept on disk for the next process."""
    on_cpu_only = ("packed_native", "packed_csr") if is_tiny() else ()
    for precision in ("fp32", "bf16") if is_tiny() else ("bf16",):
        for storage in (BASELINE, "masked", "packed", *on_cpu_only):
            yield {"precision": precision, "storage": storage, **_compile_time(storage, precision)}


def _compile_time(storage: str, precision: str) -> Row:
    import torch
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_cache

    from sparsecl import dist
    from sparsecl.engine.topology import DTYPES
    from sparsecl.model.build import build_gpt
    from sparsecl.model.compiled import compile_blocks

    given, row = replace(sizes(), layers=2), Row()
    config = run_config(storage, precision, given)
    with fresh_cache():
        for name in ("cold", "cached"):
            torch._dynamo.reset()
            counters.clear()
            model = build_gpt(config.model, config.topology, vocab_size=given.vocab, seed=0)
            model.to(dist.device(), DTYPES[precision])
            compile_blocks(model)
            tokens = torch.zeros(MICRO, given.context + 1, dtype=torch.int64, device=dist.device())
            begin = time.perf_counter()
            losses, _ = model(tokens[:, :-1], tokens[:, 1:])
            losses.mean().backward()
            row |= {"graphs": counters["stats"]["unique_graphs"]}
            row |= {f"seconds {name}": time.perf_counter() - begin}
    torch._dynamo.reset()
    return row


def speed() -> Iterator[Row]:
    """Steps of one micro-batch each: the smaller one tells what the host costs."""
    cases: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("100m", (BASELINE, "masked", "packed")),
        ("1b", (BASELINE, "packed")),
    )
    if is_tiny():
        cases = (("demo", (BASELINE, "packed")),)
    for preset, names in cases:
        for name in names:
            yield from _speeds(preset, name, (1, 2) if is_tiny() else (8, 32))


def _speeds(preset: Any, name: str, micros: tuple[int, int]) -> Iterator[Row]:
    import torch

    vocab = 512 if is_tiny() else 50257
    config = RunConfig(
        name=name,
        model=ModelConfig(preset=preset),
        batch=BatchConfig(sequences=micros[-1], micro=micros[-1]),
        topology=make_arms(0.1, [name])[0 if name == BASELINE else -1].topology,
        precision="fp32" if is_tiny() else "bf16",
    )
    run = timed(config, 1, vocab)
    options = argparse.Namespace(vocab=vocab)
    for micro in micros:
        shape = (micro, run.schedule.shape.context)
        row: Row = {"preset": preset, "storage": name, "micro": micro}
        run.seconds["step"].clear()
        try:
            for step in range(5):
                run.step(process.random_rows(options, step, shape), keep=step >= 2)
        except torch.cuda.OutOfMemoryError:
            yield {**row, "left out": "out of memory"}
            break
        seconds = statistics.median(run.seconds["step"])
        row |= {"step seconds": seconds, "tokens/s": shape[0] * shape[1] / seconds}
        if not is_tiny():
            row["peak bytes"] = torch.cuda.max_memory_allocated()
        yield row
    run.close()


SECTIONS = {
    "environment": environment,
    "tests": tests,
    "losses": losses,
    "repeat": repeat,
    "waits": waits,
    "nccl": nccl,
    "compile": compiled,
    "speed": speed,
    # Parts of `losses`, and of `compile`.
    "tiny": lambda: on_cpu(TINY),
    "full": lambda: on_cpu(FULL),
    "compile_times": compile_times,
}


def main(arguments: Sequence[str]) -> None:
    """Be the process of a section."""
    name, device, path = arguments
    process.hush()
    process.choose_device(device)
    with open(path, "w", encoding="utf-8") as file:
        for row in SECTIONS[name]():
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
