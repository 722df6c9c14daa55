"""What all figures share: colours, axes, and files whose bytes depend on their content alone.

Figures are built as objects on the Agg canvas, never through pyplot: no window, and nothing of
one figure reaches the next.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sparsecl.files import atomic_open

# Okabe & Ito 2008, safe for the common kinds of colour blindness; their yellow is too pale for
# lines on white and is replaced by a dark grey. More series repeat the colours in other dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, GRID = "#333333", "#BBBBBB", "#EEEEEE"
DPI = 150
LEGEND_LINE = 0.19
"""Inches of a line of a legend."""
PDF_FONT = 42
"""TrueType letters: most publishers refuse matplotlib's default, Type 3."""

_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(url\(#|href="#)([^")]+)')


def line_style(index: int) -> tuple[str, Any]:
    """Colour and dash of a domain, run or arm."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def plain(text: str) -> str:
    """Text of a user as it stands: matplotlib takes what is between two dollars for a formula."""
    return text.replace("$", r"\$")


def clean(axes: Axes) -> None:
    """Two spines, faint lines across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(axis="y", color=GRID, zorder=0)
    axes.set_axisbelow(True)


def legend_above(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Four names a line above the panels; lines beyond the third make the figure taller."""
    lines = -(-len(labels) // 4)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, lines - 3))
    where = {"loc": "outside upper left", "ncols": 4, "frameon": False}
    figure.legend(handles, labels, fontsize=9, labelcolor=INK, **where)


def freeze(figure: Figure) -> Figure:
    """Lay the figure out once and for all: each of its three files would do it again."""
    figure.set_dpi(DPI)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save_png(figure: Figure, path: Path | str) -> None:
    """Write a PNG without a time stamp, so that equal records give equal bytes."""
    canvas = FigureCanvasAgg(figure)
    with atomic_open(Path(path), "wb") as file:
        canvas.print_png(file, metadata={"Software": None})


def save_pdf(figure: Figure, path: Path | str) -> None:
    """Write a PDF without a time stamp."""
    dates = {"CreationDate": None, "Creator": None, "Producer": None}
    canvas = FigureCanvasPdf(figure)
    with matplotlib.rc_context({"pdf.fonttype": PDF_FONT}), atomic_open(Path(path), "wb") as file:
        canvas.print_pdf(file, metadata=dates)


def svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element to stand in a page, its colours as CSS variables.

    Colours become var(--ink), var(--faint), var(--grid) and var(--c0) ... var(--c6), so that a
    dark page can redefine them; the background is left out. Letters stay letters.

    Args:
        name: put before every id, because one page holds many figures. Letters, digits, "-".
    """
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name}
    backgrounds = [figure.patch, *(axes.patch for axes in figure.axes)]
    file = io.StringIO()
    try:
        for patch in backgrounds:
            patch.set_visible(False)
        with matplotlib.rc_context(settings):
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    finally:
        for patch in backgrounds:
            patch.set_visible(True)
    text = file.getvalue()
    text = text[text.index("<svg ") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = _ID.sub(lambda match: f'id="{name}-{match[1]}"', text)
    text = _REFERENCE.sub(lambda match: f"{match[1]}{name}-{match[2]}", text)
    # A fixed size in points would not shrink with the window; the view box keeps the proportions.
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} class="figure">{_themed(rest)}'


def _themed(text: str) -> str:
    """Palette colours as CSS variables; others, like those of a heat map, stay."""
    variables = {INK: "--ink", FAINT: "--faint", GRID: "--grid"}
    variables |= {colour: f"--c{k}" for k, colour in enumerate(COLOURS)}
    for colour, variable in variables.items():
        text = text.replace(f" {colour.lower()}", f" var({variable})")
    return text
