"""Which backend is fastest for a layer: measured here, on this machine, not looked up in a table.

The crossover between dense and sparse products moves with the machine, the number of its threads,
the precision and the batch. So every backend that can do the work is timed on one layer of each
distinct shape, forward and backward, in turns; the smallest median wins.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from sparsecl.sparse.backends import BackendName, LinearOptions
from sparsecl.sparse.linear import SparseLinear
from sparsecl.sparse.native import missing

ROUNDS = 5
ENOUGH_SECONDS = 4.0  # of one shape; at least three rounds are always taken


@dataclass(frozen=True)
class Choice:
    """What was found for one shape."""

    backend: BackendName
    seconds: Mapping[str, float]
    """Median time of forward and backward by backend."""


def candidates(options: LinearOptions, device: torch.device) -> list[BackendName]:
    """The backends that can multiply such a layer on this device."""
    found: list[BackendName] = ["dense"]
    if device.type == "cpu":
        # Of the same products on the same rows csr is the slower one at every density.
        found.append("native" if missing() is None else "csr")
    if options.block_size > 1:
        found.append("block")
    return found


def choose(
    make: Callable[[LinearOptions], SparseLinear],
    options: LinearOptions,
    *,
    batch: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Choice:
    """Time the candidates on one layer. Local.

    Args:
        make: builds the layer with a backend.
        options: of the layer; its backend is replaced.
        batch: sequences and tokens of a micro-batch, as in the run.
    """
    names = candidates(options, device)
    trials = {
        name: _Trial(make(replace(options, backend=name)), batch, dtype, device) for name in names
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    if len(names) == 1:
        return Choice(names[0], {})
    for trial in trials.values():
        trial.run()  # warm-up
    begin = time.perf_counter()
    for number in range(ROUNDS):
        for place in range(len(names)):  # each goes first in its turn
            name = names[(place + number) % len(names)]
            seconds[name].append(trials[name].run())
        if number >= 2 and time.perf_counter() - begin > ENOUGH_SECONDS:
            break
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return Choice(min(names, key=lambda name: medians[name]), medians)


class _Trial:
    """One layer with one backend, ready to be timed."""

    def __init__(
        self,
        layer: SparseLinear,
        batch: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.layer = layer
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.to(device=device, dtype=dtype)
        self.x = torch.randn(*batch, layer.local_shape[1], generator=generator)
        self.x = self.x.to(device, dtype).requires_grad_()
        self.dy: Any = None

    def run(self) -> float:
        """Seconds of one forward and backward pass of this rank's slice."""
        _wait(self.x.device)
        begin = time.perf_counter()
        # The slice's own product: no rank waits for another here.
        y = SparseLinear.forward(self.layer, self.x)
        if self.dy is None:
            self.dy = torch.randn_like(y)
        torch.autograd.grad(y, (self.x, self.layer.weight), self.dy)
        _wait(self.x.device)
        return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
