"""Our dense step beside that of nanoGPT (https://github.com/karpathy/nanoGPT), from its own file.

The user names a checkout; its model.py is run as it is. Both models have the same shape, begin from
the same weights and see the same tokens, in turns in one process. Form gpt is nanoGPT with
`bias=False` and without dropout, so the losses on the same weights must agree; what does not is
reported. A step of theirs is that of its train.py: forward, backward, clipping, AdamW as
`configure_optimizers` makes it, gradients dropped. A second arm has fused AdamW: as published, the
kernel is asked for on a GPU only.
"""

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsecl.benchmarks import process
from sparsecl.benchmarks.arms import BASELINE
from sparsecl.benchmarks.ratios import medians, paired_ratio
from sparsecl.benchmarks.steps import Timed
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import DataError, MissingInputError
from sparsecl.files import sha256_file
from sparsecl.optim.config import OptimizerConfig

if TYPE_CHECKING:
    import torch

    from sparsecl.engine.run import Prepared
    from sparsecl.model.config import ModelShape
    from sparsecl.model.gpt import GPT

EMBEDDING = "embedding."
PUBLISHED, FUSED = "nanogpt", "nanogpt_fused"
TOLERANCE = 1e-5
"""Nats between the losses of one function: sums in fp32 are ordered differently."""

# What is named of a parameter that one of the two has and the other has not.
KINDS = {"wte": "token embedding", "wpe": "position embedding", "lm_head": "head that is not tied"}


def find_model(folder: Path) -> Path:
    """Its model.py.

    Raises:
        MissingInputError: there is no such folder, or no model.py in it.
    """
    if not folder.is_dir():
        raise MissingInputError(f"--vs nanogpt {folder}: no such folder; name a nanoGPT checkout")
    found = folder / "model.py"
    if not found.is_file():
        raise MissingInputError(f"--vs nanogpt {folder}: holds no model.py; is it nanoGPT?")
    return found


def load(path: Path) -> Any:
    """Run a model.py and give the module.

    Raises:
        DataError: it fails, or defines no GPT and GPTConfig.
    """
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses looks there
    try:
        with contextlib.redirect_stdout(None):
            spec.loader.exec_module(module)
    except Exception as error:  # of somebody else's file: no kind in common
        raise DataError(f"{path}: does not run: {_one_line(error)}") from error
    missing = [name for name in ("GPT", "GPTConfig") if not hasattr(module, name)]
    if missing:
        raise DataError(f"{path}: defines no {' and no '.join(missing)}; it is not nanoGPT's")
    return module


def make(module: Any, shape: "ModelShape", vocab_size: int) -> "torch.nn.Module":
    """Its model, of our shape, on the CPU in fp32.

    Raises:
        DataError: its classes take other arguments.
    """
    sizes = {
        "block_size": shape.context,
        "vocab_size": vocab_size,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_embd": shape.width,
    }
    try:
        with contextlib.redirect_stdout(None):  # it prints its size
            return module.GPT(module.GPTConfig(**sizes, dropout=0.0, bias=False))
    except Exception as error:
        raise DataError(f"{module.__file__}: makes no model: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def count(ours: "GPT", theirs: "torch.nn.Module") -> dict[str, Any]:
    """Weights of both, a tied head once; `differ` has both counts of each kind that differs."""
    from sparsecl.checkpoint.hf_names import place

    one = _by_kind((place("gpt", name).key, p.numel()) for name, p in ours.named_parameters())
    other = _by_kind((_key(name), p.numel()) for name, p in theirs.named_parameters())
    kinds = sorted({*one, *other})
    pairs = {kind: [one.get(kind, 0), other.get(kind, 0)] for kind in kinds}
    return {
        "ours": sum(one.values()),
        "theirs": sum(other.values()),
        "differ": {kind: pair for kind, pair in pairs.items() if pair[0] != pair[1]},
    }


def _by_kind(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, size in sizes:
        kind = "biases" if key.endswith(".bias") else KINDS.get(key.split(".")[0], key)
        found[kind] = found.get(kind, 0) + size
    return found


def _key(name: str) -> str:
    return name.removeprefix("transformer.")


def give(ours: "GPT", theirs: "torch.nn.Module") -> bool:
    """Copy our weights into its model. Rows that pad our embedding are left out.

    Returns:
        False, with nothing copied, if its parameters are others than ours.
    """
    from sparsecl.checkpoint.hf_names import place

    named = {_key(name): p.detach() for name, p in theirs.named_parameters()}
    spots = {name: place("gpt", name) for name, _ in ours.named_parameters()}
    if {spot.key for spot in spots.values()} != named.keys():
        return False
    pairs = []
    for name, weight in ours.named_parameters():
        spot, source = spots[name], weight.detach()
        whole = named[spot.key]
        part = whole if spot.third is None else whole.chunk(3)[spot.third]
        pairs.append((part, source[: ours.vocab_size] if name.startswith(EMBEDDING) else source))
    if any(part.shape != source.shape for part, source in pairs):
        return False
    for part, source in pairs:
        part.copy_(source)
    return True


def losses(ours: "GPT", theirs: "torch.nn.Module", rows: np.ndarray) -> dict[str, float]:
    """The mean loss of both on rows [sequences, tokens + 1], in nats."""
    import torch

    tokens = torch.from_numpy(rows)
    x, y = tokens[:, :-1], tokens[:, 1:].contiguous()
    with torch.no_grad():
        return {"ours": float(ours(x, y)[0].mean()), "theirs": float(theirs(x, y)[1])}


def optimizer_of(
    model: Any, config: OptimizerConfig, device: str, *, fused: bool
) -> "torch.optim.Optimizer":
    """What its configure_optimizers gives; with `fused` the same groups in the fused kernel."""
    import torch

    with contextlib.redirect_stdout(None):
        found = model.configure_optimizers(config.weight_decay, config.lr, config.betas, device)
    if not fused:
        return found
    names = ("params", "weight_decay")
    groups = [{name: group[name] for name in names} for group in found.param_groups]
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), fused=True)


class Theirs:
    """A nanoGPT with its optimizer, and the times of its steps; as `Timed` is of ours."""

    def __init__(self, model: Any, config: RunConfig, micro: int, *, fused: bool) -> None:
        """Take a model. bf16 is autocast of fp32 weights, as in its train.py."""
        import torch

        from sparsecl import dist

        self.config, self.micro = config, micro
        device = dist.device()
        self.model = model.to(device).train()
        self.optimizer = optimizer_of(model, config.optimizer, device.type, fused=fused)
        self.run = torch.compile(model) if config.speed.compile else model
        self.autocast: Any = contextlib.nullcontext()
        if config.precision == "bf16":
            self.autocast = torch.autocast(device.type, torch.bfloat16)
        self.seconds: dict[str, list[float]] = {}
        self.loss = float("nan")

    def step(self, rows: np.ndarray, *, keep: bool) -> None:
        """Train on rows [sequences, tokens + 1]; `keep` its times or not."""
        import torch

        from sparsecl import dist

        batches = torch.from_numpy(rows).to(dist.device()).split(self.micro)
        watch = process.Stopwatch()
        for tokens in batches:
            with self.autocast:
                # Its loss takes views of both.
                loss = self.run(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())[1]
            watch.lap("forward")
            (loss / len(batches)).backward()
            watch.lap("backward")
        if self.config.optimizer.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        watch.lap("update")
        times = watch.stop()
        self.loss = float(loss.detach())
        for name, seconds in times.items() if keep else ():
            self.seconds.setdefault(name, []).append(seconds)


def measure(
    options: argparse.Namespace, groups: Mapping[float, Mapping[str, RunConfig]]
) -> dict[str, Any]:
    """Compare weights and losses, then step our dense model and theirs in turns.

    Raises:
        UserError: if the device, the precision or the DeepSpeed config does not fit.
        MissingInputError, DataError: if there is no nanoGPT where the user says.
    """
    from sparsecl import dist

    path = find_model(options.vs)
    config = next(iter(groups.values()))[BASELINE]
    machine, prepared = process.start(options, {PUBLISHED: {BASELINE: config}})
    module = load(path)
    dist.init()
    found = _compare(options, module, prepared[PUBLISHED][BASELINE])
    dist.shutdown()
    return {"environment": process.finish(machine), "sha256": sha256_file(path), **found}


def _compare(options: argparse.Namespace, module: Any, prepared: "Prepared") -> dict[str, Any]:
    from sparsecl import dist
    from sparsecl.model.build import build_gpt

    config, schedule = prepared.config, prepared.schedule
    shape = (options.sequences, schedule.shape.context)
    # The weights that `Timed` begins with too: they depend on config and seed only.
    ours = build_gpt(config.model, config.topology, vocab_size=options.vocab, seed=config.seed)
    names = (PUBLISHED,) if dist.device().type == "cuda" else (PUBLISHED, FUSED)
    models = {name: make(module, schedule.shape, options.vocab) for name in names}
    same = all([give(ours, model) for model in models.values()])
    one = models[PUBLISHED]
    rows = process.random_rows(options, 0, shape)[: schedule.micro]
    found = {"weights": count(ours, one), "losses": losses(ours, one, rows) if same else None}
    del ours, one
    arms: dict[str, Any] = {BASELINE: Timed(prepared, options.vocab)}
    for name in names:
        fused = name == FUSED
        arms[name] = Theirs(models.pop(name), config, schedule.micro, fused=fused)

    def step(name: str, index: int, counts: bool) -> None:
        arms[name].step(process.random_rows(options, index, shape), keep=counts)

    found["orders"] = process.take_turns(
        list(arms), step, warmup=options.warmup, rounds=options.rounds, label="nanogpt"
    )
    baseline = arms[BASELINE].seconds["step"]
    found["tokens_per_step"] = schedule.tokens_per_step
    found["arms"] = {name: _summary(arm, baseline, schedule) for name, arm in arms.items()}
    arms[BASELINE].close()
    return found


def _summary(arm: Any, dense: list[float], schedule: Any) -> dict[str, Any]:
    """As of other arms, but the ratio is our dense step over this arm's."""
    found = medians(arm.seconds)
    return {
        "median_seconds": found,
        "tokens_per_second": schedule.tokens_per_step / found["step"],
        "dense_over_it": vars(paired_ratio(dense, arm.seconds["step"])),
        "last_loss": arm.loss,
        "seconds": arm.seconds,
    }
