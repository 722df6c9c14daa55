"""Tickets side by side: what several runs have in common, and when a mask stops to change.

A ticket here is a share of the weights of the masked matrices: those that a run has moved furthest
from where it began, or all that it has moved more than a threshold. N = cells of a matrix; two
tickets of k_a and k_b of them, drawn at random, would share k_a k_b / N.

Sources: Gong et al. 2022 (dominant winning ticket; we know its abstract, so threshold and
dimensions are our own reading: a row or column has moved as far as the root of the mean square of
its live weights). You et al. 2020, https://arxiv.org/abs/1909.11957 (early-bird tickets: the
normalised Hamming distance between the magnitude masks of successive checkpoints). Differs: theirs
prunes whole channels by the scale of batch norm, here single weights are pruned by their size.

One layer of each run is in memory at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl.checkpoint.canonical import config_part
from sparsecl.checkpoint.reader import TrainedWeights
from sparsecl.errors import DataError
from sparsecl.model.config import ModelConfig
from sparsecl.model.shapes import layer_shapes
from sparsecl.topology.config import TicketConfig, TopologyConfig
from sparsecl.topology.layer import LayerShape
from sparsecl.topology.ticket import ticket_masks

Mask = NDArray[np.bool_]

EARLY_DISTANCE, EARLY_CHECKPOINTS = 0.1, 5
"""You et al. 2020, section 3: the largest distance among the last five masks is below 0.1."""


@dataclass(frozen=True)
class Shared:
    """Two tickets in the same cells; sums over matrices add up."""

    first: int = 0
    """Size of the first ticket."""
    second: int = 0
    both: int = 0
    chance: float = 0.0
    """What random tickets of these sizes would share, matrix by matrix."""
    cells: int = 0

    @classmethod
    def of(cls, first: Mask, second: Mask) -> "Shared":
        """Of two masks of one shape."""
        sizes = int(first.sum()), int(second.sum())
        both = int((first & second).sum())
        return cls(*sizes, both, sizes[0] * sizes[1] / first.size, first.size)

    def __add__(self, other: "Shared") -> "Shared":
        """Of two matrices."""
        mine, its = asdict(self), asdict(other)
        return Shared(**{key: mine[key] + its[key] for key in mine})

    @property
    def ratio(self) -> float | None:
        """Shared weights over what chance gives; None where that is nothing."""
        return self.both / self.chance if self.chance else None


@dataclass(frozen=True)
class Overlap:
    """Two runs."""

    names: tuple[str, str]
    weights: Shared
    rows: Shared
    """Output dimensions: the same share of the rows of each matrix."""
    columns: Shared
    """Input dimensions."""
    layers: Mapping[str, Shared]
    """`weights`, matrix by matrix."""


def overlaps(
    runs: Mapping[str, Path],
    starts: Mapping[str, Path],
    *,
    share: float | None = None,
    above: float | None = None,
) -> list[Overlap]:
    """Every pair of runs.

    Args:
        runs: name -> run or checkpoint folder.
        starts: name -> the checkpoint that the run's movement is measured from.
        share: ticket = this share of all cells, the furthest moved over all matrices.
        above: in its place: all that have moved more than this.

    Raises:
        UserError: a folder is missing, damaged, or of another model.
    """
    shapes = shapes_of(next(iter(runs.values())))
    ticket = TicketConfig(score="movement", above=above)
    pairs: dict[tuple[str, str], list[_Parts]] = {pair: [] for pair in combinations(runs, 2)}
    masks = zip(*(_masks(runs[n], shapes, ticket, share, starts[n]) for n in runs), strict=True)
    opened = {n: (TrainedWeights(runs[n]), TrainedWeights(starts[n])) for n in runs}
    for shape, found in zip(shapes, masks, strict=True):
        sides = {
            name: (mask, *_dimensions(*opened[name], shape, share, above))
            for name, mask in zip(runs, found, strict=True)
        }
        for (one, two), parts in pairs.items():
            weights, rows, columns = map(Shared.of, sides[one], sides[two])
            parts.append((weights, rows, columns))
    return [_joined(pair, shapes, parts) for pair, parts in pairs.items()]


_Parts = tuple[Shared, Shared, Shared]
"""Weights, rows and columns of one matrix."""


def _joined(
    pair: tuple[str, str], shapes: Sequence[LayerShape], parts: Sequence[_Parts]
) -> Overlap:
    weights, rows, columns = (sum(column, Shared()) for column in zip(*parts, strict=True))
    layers = {shape.name: part[0] for shape, part in zip(shapes, parts, strict=True)}
    return Overlap(pair, weights, rows, columns, layers)


def _dimensions(
    end: TrainedWeights, start: TrainedWeights, shape: LayerShape, share: float | None, above: Any
) -> tuple[Mask, Mask]:
    """The rows and the columns of one matrix that have moved: the share that moved furthest (at
    least one), or all above the threshold."""
    live = end.live(shape)
    squares = np.square((end.weight(shape) - start.weight(shape)) * live, dtype=np.float64)
    found = []
    for axis in (1, 0):
        moved = np.sqrt(squares.sum(axis) / np.maximum(live.sum(axis), 1))
        if share is None:
            found.append(moved > above)
            continue
        mask = np.zeros(moved.size, dtype=bool)
        mask[np.argsort(-moved, kind="stable")[: max(1, round(share * moved.size))]] = True
        found.append(mask)
    return found[0], found[1]


@dataclass(frozen=True)
class Distance:
    """The magnitude masks of two checkpoints of a run, one after the other."""

    step: int
    """Of the later one."""
    distance: float
    """Cells in which the masks differ over all cells."""
    early: bool
    """The largest of the last distances is below the bound: the ticket may be drawn here."""


def mask_distances(checkpoints: Sequence[Path], *, density: float) -> list[Distance]:
    """Normalised Hamming distance of the masks of successive checkpoints.

    Args:
        checkpoints: folders, in the order of their steps.
        density: live share of the masks, over all matrices.

    Raises:
        UserError: a checkpoint is damaged, of another model, or has fewer live weights.
    """
    shapes = shapes_of(checkpoints[0])
    cells = sum(shape.num_cells for shape in shapes)
    found: list[Distance] = []
    for before, after in zip(checkpoints, checkpoints[1:], strict=False):
        pair = (_masks(path, shapes, TicketConfig(), density) for path in (before, after))
        differ = sum(int((one ^ two).sum()) for one, two in zip(*pair, strict=True))
        last = [d.distance for d in found[1 - EARLY_CHECKPOINTS :]] + [differ / cells]
        early = len(last) == EARLY_CHECKPOINTS and max(last) < EARLY_DISTANCE
        found.append(Distance(TrainedWeights(after).manifest.step, differ / cells, early))
    return found


def shapes_of(path: Path) -> list[LayerShape]:
    """The masked matrices of the model in a checkpoint, by the config that it was saved under.

    Raises:
        UserError: it holds no such config.
    """
    manifest = TrainedWeights(path).manifest
    try:
        return layer_shapes(ModelConfig(**config_part(manifest.state, "model")).resolved())
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: the config of its model cannot be read ({error})") from None


def _masks(
    path: Path,
    shapes: Sequence[LayerShape],
    ticket: TicketConfig,
    share: float | None,
    since: Path | None = None,
) -> Iterator[Mask]:
    ticket = replace(ticket, since=None if since is None else str(since))
    config = TopologyConfig(kind="ticket", path=str(path), ticket=ticket, density=share or 1.0)
    return ticket_masks(config, shapes, seed=0, open_run=TrainedWeights)
