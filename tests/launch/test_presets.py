"""The presets of 100M to 1.3B parameters: built without memory, resolved for 1, 8 and 64 GPUs."""

import math
import os
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml

from sparsecl import config as configs
from sparsecl.data.tokenizer_training import train
from sparsecl.engine.deepspeed import ds_config
from sparsecl.engine.run import run_numbers, vocabulary
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import learning_rate, make_schedule
from sparsecl.metrics.records import read_records
from sparsecl.model.config import ModelShape, check_tensor_parallel, padded_vocabulary
from sparsecl.model.flops import count_parameters
from sparsecl.model.gpt import GPT
from sparsecl.model.shapes import layer_shapes
from tests.events import HANG

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "launch" / "configs"
PRESETS = {"gpt_100m": "100m", "gpt_500m": "500m", "gpt_1b": "1b"}

# Layers, width, context, heads, and parameters with 50304 pieces, added up by hand:
# 12 L W^2 + (50304 + T + 2 L + 1) W.
SHAPES = {
    "gpt_100m": (12, 768, 1024, 12, 124_373_760),
    "gpt_500m": (24, 1280, 2048, 20, 538_932_480),
    "gpt_1b": (24, 2048, 2048, 16, 1_315_276_800),
}


def load(name, *overrides):
    return configs.load(RunConfig, CONFIGS / f"{name}.yaml", overrides)


def commands(name):
    """(number of GPUs, arguments of launch/train.py) of the commands in a preset's comments."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line.removeprefix("#").strip() for line in text.splitlines() if line[:1] == "#"]
    joined = "\n".join(lines).replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line, comments=True) if line.startswith("deepspeed ") else []
        if words:
            place = words.index("launch/train.py")
            counts = [int(n) for n in re.findall(r"--num_(?:nodes|gpus) (\d+)", line)]
            yield math.prod(counts), words[place + 1 :]


def option(arguments, name):
    """The values of one option, up to the next."""
    rest = arguments[arguments.index(name) + 1 :]
    end = next((n for n, word in enumerate(rest) if word.startswith("--")), len(rest))
    return rest[:end]


@pytest.mark.parametrize("name", PRESETS)
def test_it_builds_without_memory_with_the_counts_of_the_formulas(name):
    config = load(name)
    shape, vocab = config.model.resolved(), vocabulary(config)
    layers, width, context, heads, total = SHAPES[name]
    assert shape == ModelShape(layers, width, heads, context, 4 * width)
    with torch.device("meta"):
        model = GPT(shape, vocab_size=vocab, topologies={})
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    built = sum(parameter.numel() for parameter in model.parameters())
    assert padded_vocabulary(vocab, 1) == vocab  # no padding that the count would lack
    assert built == count_parameters(shape, vocab, {}).total == total


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_it_divides_by_tensor_parallel_ranks(name, tensor):
    config = load(name)
    shape = config.model.resolved()
    if shape.heads % tensor:
        assert (name, tensor) in [("gpt_100m", 8), ("gpt_500m", 8)]  # 12 and 20 heads
        return
    check_tensor_parallel(shape, tensor)
    assert padded_vocabulary(vocabulary(config), tensor) % tensor == 0
    for layer in layer_shapes(shape):
        assert (layer.out_features, layer.in_features)[layer.split_dim] % tensor == 0


@pytest.mark.parametrize("name", PRESETS)
def test_its_commands_run_the_same_batches_on_1_8_and_64_gpus(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = dict(commands(name))
    assert sorted(found) == [1, 8, 64]
    for num_gpus, arguments in found.items():
        paths = [Path(path) for path in option(arguments, "--config")]
        config = configs.load(RunConfig, paths, option(arguments, "--set"))
        assert paths[0] == Path(f"launch/configs/{name}.yaml")
        assert [domain.source for domain in config.data.domains] == ["hf"] * 5
        schedule = make_schedule(config, world_size=num_gpus)
        assert schedule.micro * schedule.accumulation * schedule.dp_size == config.batch.sequences
        assert schedule.tokens_per_step == make_schedule(load(name), world_size=1).tokens_per_step
        path = Path(option(arguments, "--ds_config")[0])
        resolved = ds_config.resolve(path, run_numbers(config, schedule))
        assert resolved.config["bf16"]["enabled"] is True
        assert resolved.config["train_batch_size"] == config.batch.sequences
        assert resolved.config["gradient_accumulation_steps"] == schedule.accumulation


@pytest.mark.parametrize("name", PRESETS)
def test_its_length_and_schedule(name):
    config = load(name)
    schedule = make_schedule(config, world_size=8)
    total = SHAPES[name][-1]
    # Twenty tokens for each parameter of the dense model, over five domains.
    assert 18 < schedule.num_steps * schedule.tokens_per_step / total < 22
    phase = schedule.phases[0]
    warmup = round(config.schedule.warmup * phase.num_steps)
    rates = [learning_rate(config, phase, step) for step in (0, warmup, phase.num_steps - 1)]
    assert rates[0] < 0.05 * rates[1]
    assert rates[1:] == pytest.approx([config.optimizer.lr, 0.1 * config.optimizer.lr])


def free_gib():
    """Memory that can be had without swapping, of this machine and of its container."""
    available = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    free = available / 2**20
    limit, used = (Path(f"/sys/fs/cgroup/memory.{what}") for what in ("max", "current"))
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, (int(text) - int(used.read_text())) / 2**30)
    return free


def start_small(starter, name, steps):
    """Train a preset for a few steps of one sequence; returns the run folder and the process.

    The text is synthetic, so that it is there at once; model, vocabulary and storage are the
    preset's own. In fp32: a CPU without instructions for bf16 takes minutes for a step in it.
    """
    synthetic = {"train_tokens": 40_000, "validation_tokens": 8000, "num_symbols": 8}
    domain = {"name": "a", "source": "synthetic", "synthetic": synthetic}
    changes = {
        "data": {"cache_dir": str(starter.folder / "cache"), "domains": [domain]},
        "tokenizer": {"model": str(wide_tokenizer(starter.folder / "wide.model"))},
        "phases": {"tokens": None, "steps": steps},
        "batch": {"sequences": 1, "micro": 1},
        "precision": "fp32",
        "optimizer": {"lr": 1.0e-3},
        "eval": {"every": 0, "tokens": 64, "batch": 1},
        "plasticity": {"tokens": 0, "every": 0},
        "checkpoint": {"background": False},
        "log": {"every": 1},
    }
    laid_over = starter.folder / "small.yaml"
    laid_over.write_text(yaml.safe_dump(changes), encoding="utf-8")
    folder = starter.folder / "run"
    arguments = [
        *("--config", str(CONFIGS / f"{name}.yaml"), str(laid_over)),
        *("--ds_config", str(ROOT / "ds_configs" / "zero1.json"), "--run_dir", str(folder)),
    ]
    return folder, starter.start(arguments)


def wide_tokenizer(path):
    """A SentencePiece model of the presets' vocabulary: single letters, and pieces never met."""
    from sentencepiece import sentencepiece_model_pb2

    trained = train(["abcdefgh ijklmnop\n"] * 50, 300)
    trained.save(path.parent)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((path.parent / "tokenizer.model").read_bytes())
    for number in range(50_304 - len(proto.pieces)):
        proto.pieces.add(piece=f"@{number}", score=-1e6 - number)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.slow
@pytest.mark.skipif(free_gib() < 6, reason="needs 6 GiB of free memory")
def test_100m_takes_real_steps(starter):
    folder, job = start_small(starter, "gpt_100m", steps=3)
    done = job.wait(3 * HANG)
    assert done.code == 0, done.err
    losses = [point.loss for point in read_records(folder).train]
    assert len(losses) == 3 and losses[-1] < losses[0]
    shutil.rmtree(folder)  # half a gigabyte of checkpoint


@pytest.mark.slow
@pytest.mark.skipif(
    "SPARSECL_BIG" not in os.environ or free_gib() < 20,
    reason="ten minutes and 20 GiB of free memory; set SPARSECL_BIG=1",
)
def test_1b_takes_a_real_step_within_24_gib(starter):
    """The whole model at density 0.1: all layers, the full context and vocabulary, one sequence."""
    folder, job = start_small(starter, "gpt_1b", steps=1)
    peak, end = 0.0, time.monotonic() + 8 * HANG
    while job.alive and time.monotonic() < end:
        time.sleep(0.5)
        peak = max(peak, peak_gib(job.process.pid))
    done = job.wait()
    assert done.code == 0, done.err
    (point,) = read_records(folder).train
    assert 5 < point.loss < 20  # ln 50304 = 10.8 before any step
    assert 4 < peak < 24, f"{peak:.1f} GiB"
    shutil.rmtree(folder)


def peak_gib(pid):
    """Largest resident memory of a process so far; 0 if it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 2**20 if found else 0.0
