"""Lottery tickets: the live set that is left of a trained run when its least weights are removed.

Source: Frankle and Carbin 2019, https://arxiv.org/abs/1803.03635 (iterative magnitude pruning).
Differs: exactly round(share * live) weights are removed, of equal scores those that come first. The
public code (open_lth) keeps what is strictly above a threshold, which removes one weight more, and
with ties all of them; it has no place here.

A score is read as the bits of a float32 >= 0, whose order is that of its values. So the threshold
over all layers is found exactly with two histograms, and one layer is in memory at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsecl import seeding
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.topology.config import TicketConfig, TopologyConfig
from sparsecl.topology.layer import LayerShape
from sparsecl.topology.sampling import choose_cells

Bits = NDArray[np.uint32]
"""Scores >= 0 of the live weights of one layer, as the bits of float32, [N]."""

BINS = 1 << 16


class TrainedRun(Protocol):
    """A checkpoint whose digests were checked."""

    def live(self, shape: LayerShape) -> NDArray[np.bool_]:
        """What lives, [O, I]; all of it where no topology of role `topology` is on the layer.

        Raises:
            DataError: it holds no layer of this name and shape.
        """
        ...

    def weight(self, shape: LayerShape) -> NDArray[np.float32]:
        """The global weight [O, I]; absent weights are 0. Raises as `live`."""
        ...


OpenRun = Callable[[Path], TrainedRun]
"""Opens a run folder, at its newest checkpoint, or a checkpoint folder."""


def ticket_masks(
    config: TopologyConfig, shapes: Sequence[LayerShape], *, seed: int, open_run: OpenRun
) -> Iterator[NDArray[np.bool_]]:
    """The masks [O, I] of all layers, in the order of `shapes`; one is made at a time.

    Args:
        seed: of the run; decides what is random (`score: random`, `positions: random`).

    Raises:
        MissingInputError: no run is given, or it is not there.
        DataError: it is damaged, or of another model.
        UserError: it has fewer live weights than the ticket would have.
    """
    trained = open_run(_given(config.path, "topology.path", "the run or checkpoint to prune"))
    ticket = config.ticket
    score = _scores(ticket, trained, seed, open_run)
    groups = [shapes] if ticket.scope == "global" else [[shape] for shape in shapes]
    for group in groups:
        for shape, kept in zip(group, _kept(config, group, trained, score), strict=True):
            mask = trained.live(shape)
            mask[mask] = kept
            yield _drawn_anew(mask, shape, seed) if ticket.positions == "random" else mask


def _kept(
    config: TopologyConfig,
    shapes: Sequence[LayerShape],
    trained: TrainedRun,
    score: Callable[[LayerShape], Bits],
) -> Iterator[NDArray[np.bool_]]:
    """For each layer which of its live weights stay, [N]."""
    above = config.ticket.above
    if above is not None:
        limit = np.float32(above).view(np.uint32)
        return (score(shape) > limit for shape in shapes)
    num_live = sum(int(trained.live(shape).sum()) for shape in shapes)
    num_removed = _num_removed(config, shapes, num_live)
    return survivors(lambda: map(score, shapes), num_removed)


def _num_removed(config: TopologyConfig, shapes: Sequence[LayerShape], num_live: int) -> int:
    ticket = config.ticket
    if ticket.prune is not None:
        return num_live - num_left(num_live, ticket.prune, ticket.times)
    wanted = round(config.density * sum(shape.num_cells for shape in shapes))
    if wanted > num_live:
        where = shapes[0].name if ticket.scope == "layer" else "all layers"
        raise UserError(
            f"topology.density={config.density:g}: {where}: a ticket would have {wanted:,} "
            f"weights, and only {num_live:,} live in {config.path}. Use a lower density."
        )
    return num_live - wanted


def num_left(num_live: int, prune: float, times: int) -> int:
    """Live weights after `times` rounds that each remove exactly round(prune * live)."""
    for _ in range(times):
        num_live -= round(prune * num_live)
    return num_live


def survivors(
    scores: Callable[[], Iterator[Bits]], num_removed: int
) -> Iterator[NDArray[np.bool_]]:
    """Remove the `num_removed` lowest scores of all layers together.

    Args:
        scores: the layers' scores in their order; called three times.

    Returns:
        For each layer which of its scores stay, [N]. Of equal scores the first go.
    """
    threshold, num_ties = _threshold(scores, num_removed)
    for bits in scores():
        keep, ties = bits > threshold, np.flatnonzero(bits == threshold)
        keep[ties[num_ties:]] = True
        num_ties = max(0, num_ties - ties.size)
        yield keep


def _threshold(scores: Callable[[], Iterator[Bits]], num_removed: int) -> tuple[int, int]:
    """The highest score that goes, and how many of those with this very score go."""
    high, left = _bin(((bits >> 16) for bits in scores()), num_removed)
    low, left = _bin((bits[bits >> 16 == high] & (BINS - 1) for bits in scores()), left)
    return high << 16 | low, left


def _bin(parts: Iterator[NDArray[Any]], rank: int) -> tuple[int, int]:
    """The bin of the value number `rank` (from 1) in ascending order, and its number in there."""
    counts = np.zeros(BINS, dtype=np.int64)
    for part in parts:
        counts += np.bincount(part, minlength=BINS)
    ends = np.cumsum(counts)
    found = min(int(np.searchsorted(ends, rank)), BINS - 1)
    return found, rank - int(ends[found] - counts[found])


def _scores(
    ticket: TicketConfig, trained: TrainedRun, seed: int, open_run: OpenRun
) -> Callable[[LayerShape], Bits]:
    """Layer -> score of its live weights."""
    if ticket.score == "random":
        return lambda shape: _random(shape, seed)[trained.live(shape)]
    if ticket.score == "magnitude":
        return lambda shape: _size(trained.weight(shape)[trained.live(shape)], shape)
    why = "the checkpoint that movement is measured from"
    start = open_run(_given(ticket.since, "topology.ticket.since", why))

    def moved(shape: LayerShape) -> Bits:
        live = trained.live(shape)
        return _size(trained.weight(shape)[live] - start.weight(shape)[live], shape)

    return moved


def _size(values: NDArray[np.float32], shape: LayerShape) -> Bits:
    if not np.isfinite(values).all():
        raise DataError(f"topology.path: {shape.name} holds values that are not finite")
    return np.abs(values).view(np.uint32)


def _random(shape: LayerShape, seed: int) -> Bits:
    rng = seeding.stream(seed, "ticket", shape.name)
    size = (shape.out_features, shape.in_features)
    return rng.integers(0, 1 << 32, size=size, dtype=np.uint32)


def _drawn_anew(mask: NDArray[np.bool_], shape: LayerShape, seed: int) -> NDArray[np.bool_]:
    """As many live weights, anywhere in the layer: what er_fixed draws at this density."""
    rng = seeding.stream(seed, "mask", shape.name)
    return choose_cells(shape.num_cells, int(mask.sum()), rng).reshape(mask.shape)


def _given(path: str | None, key: str, what: str) -> Path:
    if not path:
        raise MissingInputError(f"{key}: kind ticket needs {what}")
    if not Path(path).exists():
        raise MissingInputError(f"{key}: {path} is not there")
    return Path(path)
