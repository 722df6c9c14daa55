"""The process that measures: its device and memory, what every mode needs, and turns."""

import argparse
import gc
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsecl import seeding
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError

if TYPE_CHECKING:
    from sparsecl.engine.run import Prepared


def start(
    options: argparse.Namespace, groups: Mapping[Any, Mapping[str, RunConfig]]
) -> tuple[dict[str, Any], dict[Any, dict[str, "Prepared"]]]:
    """Choose device, check all runs, then set up allocator and threads. Before anything is built.

    Returns:
        The machine with its versions; and the checked runs, in the form of `groups`.

    Raises:
        UserError: if there is no such device, or a run is not possible.
    """
    choose_device(options.device)
    import torch

    from sparsecl.allocator import keep_freed_memory
    from sparsecl.engine.resume.environment import environment
    from sparsecl.engine.run import check

    prepared = {
        key: {name: check(config, options.ds_config, None) for name, config in configs.items()}
        for key, configs in groups.items()
    }
    reuses = keep_freed_memory()
    if options.threads:
        # Also for `dist.init`, which takes all cores where nobody has said a number.
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        torch.set_num_threads(options.threads)
    machine = {
        **environment(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "keeps_freed_memory": reuses,
        "load_average_before": os.getloadavg()[0],
    }
    return machine, prepared


def finish(machine: Mapping[str, Any]) -> dict[str, Any]:
    """The machine as it was in the end."""
    import torch

    return {
        **machine,
        "threads": torch.get_num_threads(),
        "load_average_after": os.getloadavg()[0],
    }


def hush() -> None:
    """Silence what libraries say of faster ones that are not installed, and of their own future."""
    warnings.filterwarnings("ignore", message=".*Transformer Engine and Apex.*")
    warnings.filterwarnings("ignore", category=FutureWarning)


def choose_device(device: str) -> None:
    """Hide the GPUs, or make sure that there is one. Before anything asks CUDA."""
    os.environ.setdefault("DS_ACCELERATOR", device)  # else DeepSpeed prints how it found out
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")


def backends_of(prepared: "Prepared") -> tuple[dict[str, Any], list[str]]:
    """For backend auto, measure which backends a run takes; never from a cache.

    Returns:
        Backends by layer name, and what was found for each shape, in words.
    """
    from sparsecl.engine.topology import choose_backends

    config = prepared.config
    with tempfile.TemporaryDirectory() as folder:
        fresh = replace(config, data=replace(config.data, cache_dir=folder))
        backends, lines = choose_backends(fresh, prepared.schedule, prepared.topologies, None)
    gc.collect()
    return dict(backends), lines


def drop(engine: Any) -> None:
    """Let go of a DeepSpeed engine and all its memory: hooks and registries still know it."""
    import torch

    engine.destroy()
    optimizer = engine.optimizer
    engine.__dict__.clear()
    optimizer.__dict__.clear()  # ZeRO-3's is held by hooks on the modules' class
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def random_rows(options: argparse.Namespace, index: int, shape: tuple[int, int]) -> np.ndarray:
    """Token ids int64 [sequences, tokens + 1] of a round, the same for every arm."""
    rng = seeding.stream(0, "bench", index)
    return rng.integers(options.vocab, size=(shape[0], shape[1] + 1))


def rotated(names: Sequence[str], index: int) -> list[str]:
    """A B C, B C A, C A B, ...: over the rounds each goes first equally often."""
    start = index % len(names)
    return [*names[start:], *names[:start]]


def take_turns(
    names: Sequence[str],
    run: Callable[[str, int, bool], None],
    *,
    warmup: int,
    rounds: int,
    label: str = "bench",
) -> list[list[str]]:
    """Call `run(name, round, counts)` for every name in every round.

    Returns:
        The order of the names in the rounds that count; the warm-up comes before them.
    """
    from sparsecl.progress import ProgressBar

    progress = ProgressBar(label, total=(warmup + rounds) * len(names))
    orders = [rotated(names, index) for index in range(warmup + rounds)]
    for index, order in enumerate(orders):
        for name in order:
            run(name, index, index >= warmup)
            progress.advance({"arm": name})
    progress.close()
    return orders[warmup:]


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
