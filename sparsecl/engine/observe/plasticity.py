"""The signs of lost plasticity: dead units, ranks, size of the weights, and what an update gains.

S = tokens of the probe, W = width, n = hidden units of a feed-forward part; `_local` = this
tensor-parallel rank's share.

The probe is a fixed piece of validation text, as much of every domain, and the same before training
and after every phase. So a figure that moves has been moved by the network and not by the text; and
because validation text is never trained on, it is data that the network has yet to learn, as Dohare
et al. 2024 ask for (theirs are the first samples of the next task, other text at every border).

Figures of activations are global: each tp rank holds a part of the hidden units, and the parts are
put together by one all-reduce over tp for each block. Every dp rank reads the whole probe, so
nothing is reduced over dp (a rank is no sum over tokens). Training is not changed: nothing here
draws a random number, touches a gradient or writes to a weight.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecl import dist
from sparsecl.data.batches import whole_windows
from sparsecl.data.prepare import DomainData
from sparsecl.engine.build import Built
from sparsecl.engine.observe.observer import Observer
from sparsecl.engine.position import Count
from sparsecl.engine.run_config import PlasticityConfig
from sparsecl.metrics.plasticity import flat_figures
from sparsecl.metrics.ranks import rank_figures
from sparsecl.metrics.units import unit_figures
from sparsecl.optim.slices import Slices
from sparsecl.sparse.linear import SparseLinear

MIN_LOSS = 1e-8  # nats; keeps p(Z) finite, as in the code of Elsayed & Mahmood 2024

Block = dict[str, float]


@dataclass
class PhaseSums:
    """What a phase leaves behind for its record, step by step; part of every checkpoint."""

    p: float = 0.0
    """Sum of p(Z) over the looks of this phase; see `Panel.after_update`."""

    p_unclamped: float = 0.0
    num_looks: Count = 0
    grad_norm: float | None = None
    """Of the live weights, at the last logged step; None if that step had none."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Text to read, int64 [sequences, length] each."""

    inputs: np.ndarray
    targets: np.ndarray


class Panel(Observer[PhaseSums]):
    """Takes the figures of one run on this rank."""

    def __init__(
        self,
        config: PlasticityConfig,
        built: Built,
        domains: Sequence[DomainData],
        *,
        context: int,
        batch: int,
    ) -> None:
        """Choose the probe. Local.

        Args:
            batch: sequences per rank and forward pass.
        """
        super().__init__(PhaseSums())
        self.config, self.built, self.batch = config, built, batch
        self.probe = make_probe(domains, tokens=config.tokens, context=context)
        self._seen: tuple[Tensor, Tensor] | None = None

    def see(self, tokens: Tensor, losses: Tensor) -> None:
        """Remember the newest micro-batch. Local.

        Args:
            tokens: int64 [B, T + 1].
            losses: fp32 [B, T] before the update.
        """
        self._seen = tokens, losses.detach()

    def begin_phase(self) -> None:
        """Nothing is seen of this phase yet."""
        self.kept = PhaseSums()

    def after_update(self, phase_step: int) -> float:
        """Where it is due, look at what the optimizer step gained. Collective over the world.

        p(Z) = clamp(1 - L(W+, Z) / max(L(W, Z), 1e-8), 0, 1) with Z this rank's last micro-batch of
        the step, W the weights before and W+ after it; mean over dp. 0: the update did not help;
        1: the loss went to zero. Elsayed & Mahmood 2024 (UPGD) take one sample
        for Z.

        Args:
            phase_step: optimizer steps done in this phase, this one included.

        Returns:
            Seconds that it took, which are not training.
        """
        every = self.config.every
        if not every or phase_step % every or self._seen is None:
            return 0.0
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the rest of the step is not our time
        begin = time.monotonic()
        tokens, before = self._seen
        with evaluating(self.built.engine):
            losses, _ = self.built.engine(tokens[:, :-1], tokens[:, 1:])
        p = 1.0 - losses.mean().double() / before.mean().double().clamp(min=MIN_LOSS)
        both = torch.stack([p.clamp(0.0, 1.0), p]) / dist.dp_size()
        clamped, unclamped = dist.all_reduce(both, group=dist.dp_group()).tolist()
        # A loss that is not finite ends the run where it is logged next; no record can hold it.
        if math.isfinite(unclamped):
            sums = self.kept
            sums.p, sums.p_unclamped = sums.p + clamped, sums.p_unclamped + unclamped
            sums.num_looks += 1
        return time.monotonic() - begin

    def measure(self) -> dict[str, Any] | None:
        """Take all figures. Collective over the world.

        Returns:
            What the record holds, the same on all ranks; None if the panel is off. `layers`: block
            -> figures; `final`: of the hidden state after the last norm; `total`: of the model.
        """
        if self.probe is None and not self.config.every:
            return None
        engine, device = self.built.engine, dist.device()
        layers, total = weight_figures(engine.module.running[-1], self.built.slices)
        final: Block = {}
        if self.probe is not None:
            hidden, normed = activations(engine, self.probe, batch=self.batch)
            for figures, local in zip(layers.values(), hidden, strict=True):
                figures |= hidden_figures(gather_features(local.to(device)))
            final = rank_figures(gram(normed.to(device)))
        num_tokens = 0 if self.probe is None else self.probe.inputs.size
        return {
            "probe_tokens": num_tokens,
            "layers": layers,
            "final": final,
            "total": {**total, **update_figures(self.kept)},
        }


def make_probe(domains: Sequence[DomainData], *, tokens: int, context: int) -> Probe | None:
    """Validation text of every domain in equal shares, each spread over all of it. Local.

    Args:
        tokens: of all domains together; each gives at least one, and no more than the shortest
            validation text has.
        context: longest sequence. A share is cut into as few sequences as that allows, of one
            length; what is left over is not read.

    Returns:
        The probe, or None for 0 tokens.
    """
    if not tokens:
        return None
    shortest = min(domain.validation.num_tokens - 1 for domain in domains)
    share = min(max(1, tokens // len(domains)), shortest)
    count = -(-share // context)
    length = share // count
    parts = [whole_windows(d.validation, context=length, count=count) for d in domains]
    rows = np.concatenate(parts)
    return Probe(rows[:, :-1], rows[:, 1:])


@contextmanager
def evaluating(engine: Any) -> Iterator[None]:
    """Eval mode and no gradients inside; training mode afterwards."""
    engine.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        engine.train()


def activations(engine: Any, probe: Probe, *, batch: int) -> tuple[list[Tensor], Tensor]:
    """Read the probe and keep what passes through the open column. Collective over the world.

    All of it goes to the CPU at once, so that a GPU holds one forward pass and nothing else.

    Returns:
        After the GELU of each block, fp32 [S, n_local]; and after the last norm, fp32 [S, W].
    """
    model, device = engine.module.running[-1], dist.device()
    kept: list[list[Tensor]] = [[] for _ in range(len(model.layers) + 1)]

    def keep(place: int, x: Tensor) -> None:
        kept[place].append(x.detach().reshape(-1, x.shape[-1]).to("cpu", torch.float32, copy=True))

    hooks = [
        # `down` reads what the GELU gives.
        block.mlp.down.register_forward_pre_hook(lambda _, args, place=place: keep(place, args[0]))
        for place, block in enumerate(model.layers)
    ]
    hooks.append(model.norm.register_forward_hook(lambda _, args, output: keep(-1, output)))
    try:
        with evaluating(engine):
            for first in range(0, len(probe.inputs), batch):
                rows = slice(first, first + batch)
                engine(
                    torch.from_numpy(probe.inputs[rows]).to(device),
                    torch.from_numpy(probe.targets[rows]).to(device),
                )
    finally:
        for hook in hooks:
            hook.remove()
    *hidden, normed = (torch.cat(parts) for parts in kept)
    return hidden, normed


def gather_features(local: Tensor) -> Tensor:
    """[S, n_local] -> [S, n], the units of all tp ranks in their order. Collective over tp."""
    size = local.shape[1]
    whole = local.new_zeros(local.shape[0], size * dist.tp_size())
    whole[:, dist.tp_rank() * size : (dist.tp_rank() + 1) * size] = local
    return dist.all_reduce(whole, group=dist.tp_group())


def hidden_figures(hidden: Tensor) -> Block:
    """Shares of units and ranks of activations [S, n]. Local."""
    sums = hidden.abs().sum(0, dtype=torch.float64).cpu().numpy()
    active = hidden.count_nonzero(0).cpu().numpy()
    return {**unit_figures(sums, active, len(hidden)), **rank_figures(gram(hidden))}


def gram(hidden: Tensor) -> np.ndarray:
    """fp64 H^T H or H H^T of H [S, n], the smaller one, not centred. Local."""
    h = hidden.double()
    return (h.t() @ h if h.shape[0] > h.shape[1] else h @ h.t()).cpu().numpy()


def weight_figures(model: Any, slices: Slices) -> tuple[dict[str, Block], Block]:
    """Size of the live master weights of a column's linears. Collective over the world.

    In role `update` the live weights are those that are trained. Embedding, positions and norms,
    which no topology thins out, are left out.

    Returns:
        For each block and for all blocks: mean |w|, and the l2 norm.
    """
    owners = {
        f"{linear.shape.name}.weight": (place, linear)
        for place, block in enumerate(model.layers)
        for linear in block.modules()
        if isinstance(linear, SparseLinear)
    }
    counts = np.zeros(len(model.layers))
    for place, linear in owners.values():
        shape, topology = linear.shape, linear.topology
        counts[place] += shape.num_cells if topology is None else topology.num_live
    sums = torch.zeros(len(model.layers), 2, dtype=torch.float64, device=dist.device())
    for item in slices:
        if item.name in owners:
            place, linear = owners[item.name]
            values = item.master
            if linear.dead is not None:
                values = values[~item.part(linear.dead).to(values.device)]
            sums[place, 0] += values.abs().sum(dtype=torch.float64)
            sums[place, 1] += values.double().square().sum()
    # Every linear is split over tp, so no weight is counted twice.
    dist.all_reduce(sums, group=None if slices.partitioned else dist.tp_group())
    found = sums.cpu().numpy()
    layers = {f"layers.{k}": _size(found[k], counts[k]) for k in range(len(counts))}
    return layers, _size(found.sum(0), counts.sum())


def _size(sums: np.ndarray, count: float) -> Block:
    """Of sum |w| and sum w^2 over `count` weights."""
    return {"weight_mean_abs": float(sums[0] / count), "weight_norm": math.sqrt(sums[1])}


def update_figures(sums: PhaseSums) -> dict[str, float | None]:
    """What the steps of the phase left: the means of p(Z), None without a look. Local."""
    looks = sums.num_looks
    return {
        "grad_norm": sums.grad_norm,
        "p": sums.p / looks if looks else None,
        "p_unclamped": sums.p_unclamped / looks if looks else None,
        "p_looks": looks,
    }


def scalars(found: Mapping[str, Any]) -> dict[str, float]:
    """TensorBoard scalars of what `Panel.measure` returned; see metrics/plasticity.py."""
    row = flat_figures(found["layers"], found["final"], found["total"])
    return {f"plasticity/{name}": value for name, value in row.items() if value is not None}
