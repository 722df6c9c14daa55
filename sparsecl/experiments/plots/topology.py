"""Pictures of topologies, drawn from their masks: weights, degrees, spectrum, reach."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sparsecl.experiments.plots import style
from sparsecl.experiments.plots.style import COLOURS, DASHES, INK, clean, save_png

MAX_MASK_PIXELS = 256
"""Longer side of a drawn mask; a larger one is drawn as local densities."""


@dataclass(frozen=True, kw_only=True)
class MaskPicture:
    """What `topology_plot` shows of one layer: one row of panels."""

    title: str
    mask: NDArray[np.bool_]
    """[O, I], True = live."""

    singular_values: Sequence[float]
    """The largest ones of the mask, descending."""

    bound: float
    """The (generalized) Ramanujan bound on the second of them."""


@dataclass(frozen=True, kw_only=True)
class ReachPicture:
    """Reach of one unit after 1..L blocks, over source units: one curve with a band."""

    label: str
    mean: Sequence[float]
    minimum: Sequence[float]
    maximum: Sequence[float]


def topology_plot(
    masks: Sequence[MaskPicture],
    curves: Sequence[ReachPicture],
    path: Path | str,
    *,
    title: str = "",
) -> None:
    """Draw topologies as PNG: a row of panels per layer, and below them the reach through blocks.

    Args:
        masks: layers to show: mask, degrees, singular values. Empty for a dense model.
        curves: at least one.
        path: PNG to write; replaced atomically.
    """
    rows = len(masks) + 1
    figure = Figure(figsize=(11.0, 3.1 * rows + 0.4), dpi=style.DPI, layout="constrained")
    grid = figure.add_gridspec(rows, 3)
    for row, picture in enumerate(masks):
        _draw_mask(figure.add_subplot(grid[row, 0]), picture)
        _draw_degrees(figure.add_subplot(grid[row, 1]), picture.mask)
        _draw_spectrum(figure.add_subplot(grid[row, 2]), picture)
    _draw_reach(figure.add_subplot(grid[-1, :]), curves)
    figure.suptitle(title, color=INK, fontsize=11, fontweight="bold")
    save_png(figure, path)


def _draw_mask(axes: Axes, picture: MaskPicture) -> None:
    """Live weights in black; rows are output units."""
    shares, size = _local_density(picture.mask)
    # Where a pixel is many weights the densest is black: a sparse mask would be all white.
    axes.imshow(shares, cmap="Greys", vmin=0.0, vmax=shares.max() or 1.0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    num_rows, num_columns = picture.mask.shape
    axes.set_xlabel(f"{num_columns} inputs", fontsize=9, color=INK)
    axes.set_ylabel(f"{num_rows} outputs", fontsize=9, color=INK)
    scale = "" if size == 1 else f"\n1 pixel = {size} x {size} weights"
    axes.set_title(picture.title + scale, loc="left", fontsize=9, color=INK)


def _local_density(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """Share of live weights in tiles of b x b weights, b the least that fits; and b."""
    size = -(-max(mask.shape) // MAX_MASK_PIXELS)
    starts = [np.arange(0, length, size) for length in mask.shape]
    # The last tile of a side may be cut short, so each is divided by its own number of weights.
    tall = np.add.reduceat(mask, starts[0], axis=0, dtype=np.float64)
    sums = np.add.reduceat(tall, starts[1], axis=1)
    sides = [np.diff([*at, length]) for at, length in zip(starts, mask.shape, strict=True)]
    return sums / np.outer(*sides), size


def _draw_degrees(axes: Axes, mask: NDArray[np.bool_]) -> None:
    """How many units have how many live weights."""
    for axis, name, colour in ((1, "inputs of a row", COLOURS[0]), (0, "of a column", COLOURS[1])):
        degrees = mask.sum(axis=axis)
        low, high = int(degrees.min()), int(degrees.max())
        step = -(-(high - low + 1) // 40)  # bins of whole numbers, about 40 at most
        edges = np.arange(low, high + step + 1, step) - 0.5
        axes.hist(degrees, bins=edges.tolist(), color=colour, alpha=0.6, label=name)
    axes.set_xlabel("live weights", fontsize=9)
    axes.set_ylabel("units", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    clean(axes)


def _draw_spectrum(axes: Axes, picture: MaskPicture) -> None:
    values = picture.singular_values
    axes.plot(range(1, len(values) + 1), values, ".", color=COLOURS[0], markersize=7)
    style = {"color": INK, "linewidth": 1.0, "linestyle": DASHES[1]}
    axes.axhline(picture.bound, label="Ramanujan bound on the second", **style)
    axes.set_ylim(0.0, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("singular values of the mask, by size", fontsize=9)
    clean(axes)


def _draw_reach(axes: Axes, curves: Sequence[ReachPicture]) -> None:
    """Mean share as a line, least to largest as a band."""
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        blocks = np.arange(1, len(curve.mean) + 1)
        axes.fill_between(blocks, curve.minimum, curve.maximum, color=colour, alpha=0.15, lw=0)
        # Alternating dashes: curves that coincide, as saturated ones do, stay visible.
        style = {"color": colour, "linestyle": DASHES[i % 2], "marker": "."}
        axes.plot(blocks, curve.mean, label=curve.label, **style)
    axes.set_ylim(-0.02, 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("blocks passed", fontsize=9)
    axes.set_ylabel("share of units reached from one", fontsize=9)
    above = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 4}
    axes.legend(frameon=False, fontsize=9, **above)
    clean(axes)
