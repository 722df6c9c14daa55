"""The mean loss matrix of each arm as a heat map, all on one scale."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sparsecl.experiments.plots.lines import WIDTH
from sparsecl.experiments.plots.style import INK, plain
from sparsecl.experiments.study.study_plan import Arm
from sparsecl.metrics.matrix import FloatArray

MAX_WRITTEN_ROWS = 16
"""Rows up to which the numbers are written into the cells."""


def matrices_figure(
    shown: Sequence[tuple[Arm, FloatArray]], domains: Sequence[str], order: Sequence[int]
) -> Figure | None:
    """Heat maps, three in a row.

    Args:
        shown: arms and their mean loss matrices [P + 1, D], nats per token.
        order: domain trained in each phase; its cell gets a frame.
    """
    if not shown or not order:
        return None
    # A domain that was never trained is far worse than all others: it would flatten the colours.
    firsts = {index: phase + 1 for phase, index in reversed(list(enumerate(order)))}
    trained = np.concatenate(
        [loss[row:, index].ravel() for _, loss in shown for index, row in firsts.items()]
    )
    finite = trained[np.isfinite(trained)]
    if not finite.size:
        return None
    scale = Normalize(float(finite.min()), float(finite.max()), clip=True)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    height = min(0.26 * (len(order) + 1), 6.0) + 1.1
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for k, (axes, (arm, loss)) in enumerate(zip(panels, shown, strict=False)):
        _draw(axes, loss, scale, domains, order, first=k % columns == 0)
        axes.set_title(plain(arm.label), loc="left", fontsize=9.5, color=INK)
    return figure


def _draw(
    axes: Axes,
    loss: FloatArray,
    scale: Normalize,
    domains: Sequence[str],
    order: Sequence[int],
    *,
    first: bool,
) -> None:
    # pcolormesh, not imshow: it stays vectors in the PDF and the page.
    axes.pcolormesh(loss, cmap="cividis_r", norm=scale, edgecolors="none")
    axes.invert_yaxis()
    if len(loss) <= MAX_WRITTEN_ROWS:
        for (j, i), value in np.ndenumerate(loss):
            shade = "white" if np.isfinite(value) and scale(float(value)) > 0.5 else "black"
            text = f"{value:.2f}" if np.isfinite(value) else "-"
            at = (i + 0.5, j + 0.5)
            axes.text(*at, text, ha="center", va="center", color=shade, fontsize=8)
    for phase, index in enumerate(order[: len(loss) - 1]):
        frame = Rectangle((index + 0.04, phase + 1.04), 0.92, 0.92, fill=False, edgecolor="black")
        axes.add_patch(frame)
    axes.set_xticks(np.arange(len(domains)) + 0.5, [plain(name) for name in domains], fontsize=8.5)
    if len(domains) > 3:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    step = -(-len(loss) // 20)  # at most about 20 labels
    names = ["before", *(f"{phase} {domains[index]}" for phase, index in enumerate(order))]
    axes.set_yticks(
        np.arange(0, len(loss), step) + 0.5,
        [plain(name) for name in names[: len(loss) : step]] if first else [],
        fontsize=8.5,
    )
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
