"""Time whole training steps: dense, masked, and masked with nothing masked, at one shape.

    python tools/bench.py --layers 2 --width 128 --heads 4 --context 64 --rounds 5
    python tools/bench.py --device cuda --precision bf16 --layers 12 --sequences 64 --out gpu.json

A step is forward, backward and optimizer step through DeepSpeed on random tokens, in one process.
The arms take turns: every round is one step of each, on the same tokens, and the arm that goes
first changes from round to round. A ratio is taken within a round, so that a machine that slows
down slows both sides of it; its median and quartiles over the rounds are reported. Audits and
evaluations are not part of a step; the masks are audited once, after the last round.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # works from a checkout that was never installed
    sys.path.insert(0, str(ROOT))

# None of these imports torch: a typo in a flag costs no wait.
from sparsecl import seeding  # noqa: E402
from sparsecl.engine.run_config import BatchConfig, RunConfig  # noqa: E402
from sparsecl.errors import CannotCreateError, InvariantError, UserError  # noqa: E402
from sparsecl.files import write_json  # noqa: E402
from sparsecl.model.config import ModelConfig  # noqa: E402
from sparsecl.topology.config import TopologyConfig  # noqa: E402

if TYPE_CHECKING:
    from sparsecl.engine.run import Prepared

BASELINE = "dense"
PARTS = ("forward", "backward", "update")
"""The parts of a step, in order. Reduction of gradients counts as backward, clipping, the
optimizer and the projection onto the mask as update."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things that are compared; arms differ in their topology only."""

    name: str
    topology: TopologyConfig


@dataclass(frozen=True)
class Ratio:
    """Step time relative to the baseline, over the rounds: median, first and third quartile."""

    median: float
    q1: float
    q3: float


def make_arms(density: float) -> tuple[Arm, ...]:
    """The arms, baseline first. `all_live` has the mask's machinery and the baseline's numbers."""
    return (
        Arm(name=BASELINE, topology=TopologyConfig(kind="dense")),
        Arm(name="masked", topology=TopologyConfig(kind="er_fixed", density=density)),
        Arm(name="all_live", topology=TopologyConfig(kind="er_fixed", density=1.0)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, measure, print. Returns the exit code; see sparsecl/errors.py."""
    options = parser().parse_args(arguments)
    # Libraries name faster ones that are not installed; they are not what is timed.
    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        check_flags(options)
        arms = make_configs(options)
        result = measure(options, arms)
        print(as_table(result))
        if options.out:
            write_json(options.out, result)
            print(f"wrote {options.out}", file=sys.stderr)
    except (UserError, InvariantError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


# ---- what is asked for -----------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = {
        "layers": (4, "transformer blocks"),
        "width": (768, "features of the residual stream"),
        "heads": (12, "attention heads; a divisor of width"),
        "context": (512, "tokens of a sequence"),
        "vocab": (4096, "token ids"),
        "sequences": (8, "sequences per step"),
        "micro": (None, "sequences per forward pass; default: up to 8 that divide --sequences"),
        "rounds": (7, "rounds that count"),
        "warmup": (2, "rounds before them that do not"),
        "threads": (None, "CPU threads; default: torch's own choice"),
    }
    for name, (default, text) in numbers.items():
        shown = "" if default is None else " (default %(default)s)"
        result.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text + shown)
    result.add_argument("--density", type=float, default=0.1, help="live share of the masked arm")
    result.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    result.add_argument(
        "--ds_config",
        type=Path,
        default=ROOT / "ds_configs" / "zero2.json",
        help="DeepSpeed config (JSON); default: ds_configs/zero2.json",
    )
    result.add_argument("--out", type=Path, metavar="FILE.json", help="write all raw times there")
    return result


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for what no config checks."""
    for name, least in (("vocab", 2), ("rounds", 1), ("warmup", 0), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be >= {least}, got {value}")
    if int(os.environ.get("WORLD_SIZE", "1")) != 1:
        raise UserError("bench.py times a single process: start it with python, not a launcher")
    if options.out:
        # Found out now, not after the measurement.
        folder = next(path for path in options.out.absolute().parents if path.exists())
        if options.out.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise CannotCreateError(f"--out {options.out}: cannot be written; name another file")


def make_configs(options: argparse.Namespace) -> dict[str, RunConfig]:
    """The run config of every arm, by its name.

    Raises:
        UserError: if a size or the density is out of range.
    """
    try:
        model = ModelConfig(
            preset=None,
            layers=options.layers,
            width=options.width,
            heads=options.heads,
            context=options.context,
        )
        batch = BatchConfig(sequences=options.sequences, micro=options.micro)
        arms = make_arms(options.density)
    except ValueError as error:
        # Messages of the configs begin with the field, and the flags bear the fields' names.
        raise UserError(f"--{error}") from None
    return {
        arm.name: RunConfig(
            name=arm.name,
            model=model,
            batch=batch,
            topology=arm.topology,
            precision=options.precision,
        )
        for arm in arms
    }


# ---- the measurement -------------------------------------------------------------------------


class Timed:
    """One arm with its own model, optimizer and DeepSpeed engine, and the times of its steps."""

    def __init__(self, prepared: "Prepared", vocab_size: int) -> None:
        """Build a checked run; `dist.init` has run."""
        from sparsecl.engine.build import build

        self.config, self.plan = prepared.config, prepared.plan
        self.built = build(self.config, prepared.deepspeed.config, vocab_size=vocab_size)
        self.seconds: dict[str, list[float]] = {name: [] for name in ("step", *PARTS)}
        self.loss = float("nan")

    def step(self, rows: np.ndarray, *, keep: bool) -> None:
        """Train on rows [sequences, context + 1]; `keep` its times or not."""
        import torch

        from sparsecl import dist
        from sparsecl.optim.build import set_lr

        engine = self.built.engine
        set_lr(self.built.slices.optimizer, self.config.optimizer.lr)
        batches = torch.from_numpy(rows).to(dist.device()).split(self.plan.micro)
        assert len(batches) == self.plan.accumulation, (len(batches), self.plan)
        watch = Stopwatch()
        for tokens in batches:
            losses, _ = engine(tokens[:, :-1], tokens[:, 1:])
            loss = losses.mean()
            watch.lap("forward")
            engine.backward(loss)
            watch.lap("backward")
            engine.step()
            watch.lap("update")
        times = watch.stop()
        self.loss = float(loss.detach())
        if keep:
            for name, seconds in times.items():
                self.seconds[name].append(seconds)


class Stopwatch:
    """Seconds of named parts and of the whole, on the clock of the device.

    On a GPU a lap ends with an event in the stream: nothing waits between the laps.
    """

    def __init__(self) -> None:
        """Wait for the device, and start."""
        import torch

        self._cuda = torch.cuda if torch.cuda.is_available() else None
        self._laps: list[tuple[str, Any]] = []
        if self._cuda:
            self._cuda.synchronize()
        self._begin = time.perf_counter()
        self._last = self._mark()

    def lap(self, name: str) -> None:
        """End a part. Parts of one name are added up."""
        self._laps.append((name, self._mark()))

    def stop(self) -> dict[str, float]:
        """Wait for the device. Returns seconds by part, and of the whole as `step`."""
        if self._cuda:
            self._cuda.synchronize()
        result = {"step": time.perf_counter() - self._begin}
        last = self._last
        for name, mark in self._laps:
            seconds = last.elapsed_time(mark) / 1e3 if self._cuda else mark - last
            result[name] = result.get(name, 0.0) + seconds
            last = mark
        return result

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event


def measure(options: argparse.Namespace, configs: Mapping[str, RunConfig]) -> dict[str, Any]:
    """Build all arms, step them in turn, and sum up.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: if the device, the precision or the DeepSpeed config does not fit.
        InvariantError: if an absent weight is not zero at the end.
    """
    choose_device(options.device)
    import torch

    from sparsecl import dist
    from sparsecl.engine.run import check
    from sparsecl.engine.run_folder import environment

    # All are checked before anything is built.
    prepared = {name: check(config, options.ds_config, None) for name, config in configs.items()}
    dist.init()
    if options.threads:
        torch.set_num_threads(options.threads)
    machine: dict[str, Any] = {
        **environment(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "load_average_before": os.getloadavg()[0],
    }
    arms = {name: Timed(run, options.vocab) for name, run in prepared.items()}
    orders = take_turns(options, arms)
    machine["load_average_after"] = os.getloadavg()[0]
    for arm in arms.values():
        arm.built.guard.audit(options.warmup + options.rounds)
    dist.shutdown()
    tokens_per_step = options.sequences * options.context
    return {
        "config": {key: plain(value) for key, value in vars(options).items()},
        "environment": machine,
        "tokens_per_step": tokens_per_step,
        "orders": orders,
        "arms": {
            name: {
                "topology": asdict(arm.config.topology),
                "num_tokens": tokens_per_step * len(arm.seconds["step"]),
                "last_loss": arm.loss,
                "audit_checks": arm.built.guard.checks,
                "nonzero_absent": arm.built.guard.nonzero,
                **summary(arm.seconds, arms[BASELINE].seconds, tokens_per_step),
                "seconds": arm.seconds,
            }
            for name, arm in arms.items()
        },
    }


def take_turns(options: argparse.Namespace, arms: Mapping[str, Timed]) -> list[list[str]]:
    """Warm-up rounds, then those that count. Returns the order of the arms in the latter."""
    from sparsecl.engine.display import Progress

    num_rounds = options.warmup + options.rounds
    progress = Progress("bench", total=num_rounds * len(arms), done=0, show=True)
    orders = [rotated(list(arms), index) for index in range(num_rounds)]
    for index, order in enumerate(orders):
        rows = random_rows(options, index)
        for name in order:
            arms[name].step(rows, keep=index >= options.warmup)
            progress.advance(arm=name)
    progress.close()
    return orders[options.warmup :]


def choose_device(device: str) -> None:
    """Hide the GPUs, or make sure that there is one. Before anything asks CUDA."""
    os.environ.setdefault("DS_ACCELERATOR", device)  # else DeepSpeed prints how it found out
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")


def random_rows(options: argparse.Namespace, index: int) -> np.ndarray:
    """Token ids int64 [sequences, context + 1] of a round, the same for every arm."""
    rng = seeding.stream(0, "bench", index)
    return rng.integers(options.vocab, size=(options.sequences, options.context + 1))


def rotated(names: Sequence[str], index: int) -> list[str]:
    """A B C, B C A, C A B, ...: over the rounds each goes first equally often."""
    start = index % len(names)
    return [*names[start:], *names[:start]]


# ---- what is shown ---------------------------------------------------------------------------


def summary(
    seconds: Mapping[str, Sequence[float]],
    baseline: Mapping[str, Sequence[float]],
    tokens_per_step: int,
) -> dict[str, Any]:
    """Medians of the whole step and its parts, tokens per second, ratio to the baseline."""
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "median_seconds": medians,
        "tokens_per_second": tokens_per_step / medians["step"],
        "ratio": asdict(paired_ratio(seconds["step"], baseline["step"])),
    }


def paired_ratio(seconds: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Quartiles of the ratio round by round; both arguments are in the order of the rounds."""
    ratios = np.asarray(seconds) / np.asarray(baseline)
    q1, median, q3 = (float(value) for value in np.percentile(ratios, (25, 50, 75)))
    return Ratio(median, q1, q3)


def as_table(result: Mapping[str, Any]) -> str:
    """One line for each arm: medians in milliseconds, speed, ratio with its quartiles."""
    lines = [
        f"{'arm':<12}{'step ms':>11}"
        + "".join(f"{part:>11}" for part in PARTS)
        + f"{'tokens/s':>12}   ratio to {BASELINE} (quartiles)"
    ]
    for name, arm in result["arms"].items():
        times = "".join(f"{arm['median_seconds'][p] * 1e3:>11.2f}" for p in ("step", *PARTS))
        ratio = Ratio(**arm["ratio"])
        spread = f"{ratio.median:.4f} ({ratio.q1:.4f} - {ratio.q3:.4f})"
        lines.append(f"{name:<12}{times}{arm['tokens_per_second']:>12,.0f}   {spread}")
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """A flag's value as JSON; a path relative to the checkout where it lies inside."""
    if not isinstance(value, Path):
        return value
    return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)


if __name__ == "__main__":
    sys.exit(main())
