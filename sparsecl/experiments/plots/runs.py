"""Pictures of runs, drawn from their records: one run by itself, or several side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from sparsecl.experiments.plots import style
from sparsecl.experiments.plots.style import COLOURS, FAINT, INK, clean, line_style, save_png
from sparsecl.metrics.comparison import common_domains, one_tokenizer
from sparsecl.metrics.forgetting import exposed_rows, f_last, per_domain
from sparsecl.metrics.matrix import OTHER_DOMAIN, ResultMatrix
from sparsecl.metrics.records import RunRecords, read_records
from sparsecl.metrics.speed import phase_begin
from sparsecl.metrics.summary import matrix_of, summarize


def forgetting_plot(run: Path | str | RunRecords, path: Path | str) -> None:
    """Draw one run as PNG: each domain's validation score over training, and the result matrix.

    Args:
        run: run folder, scalars.jsonl, or the records already read.
        path: PNG to write; replaced atomically.

    Raises:
        UserError: if the run cannot be read or has no evaluations.
    """
    records = run if isinstance(run, RunRecords) else read_records(run)
    summarize(records)  # raises for a run without evaluations
    matrix = ResultMatrix.from_records(records)
    num_domains, num_rows = len(records.domains), matrix.num_phases + 1
    map_width = min(2.2 + 0.62 * num_domains, 12.0)
    wide = num_domains <= 8 and num_rows <= 10
    if wide:
        figure = Figure(figsize=(9.2 + map_width, 5.2), dpi=style.DPI, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(9.2, map_width))
    else:
        map_height = min(1.6 + 0.34 * num_rows, 9.0)
        width = max(11.0, map_width)
        figure = Figure(figsize=(width, 5.6 + map_height), dpi=style.DPI, layout="constrained")
        left, right = figure.subplots(2, 1, height_ratios=(5.6, map_height))
    _label_ends(left, _draw_curves(left, records))
    _draw_matrix(right, matrix)
    figure.suptitle(_title(records, matrix), color=INK, fontsize=12, fontweight="bold")
    save_png(figure, path)


MAX_CURVES = 3  # runs whose curves fit side by side


def comparison_plot(
    records: Sequence[RunRecords], summaries: Sequence[dict[str, Any]], path: Path | str
) -> None:
    """Draw several runs as PNG: what each common domain forgot, as one bar a run; and of a few runs
    the curves too, side by side on one scale.

    Args:
        summaries: of `records`, in their order.

    Raises:
        ValueError: if there is no run, or no domain that all runs share.
    """
    domains = common_domains(summaries) if summaries else []
    if not domains:
        raise ValueError("the runs have no domain in common, so nothing can be compared")
    alike = one_tokenizer(summaries)
    bars = np.array([_forgotten(summary, domains, alike) for summary in summaries])
    kept = [i for i in range(len(domains)) if not np.isnan(bars[:, i]).all()]
    bars, domains = bars[:, kept], [domains[i] for i in kept]
    span = min(max(7.5, 3.5 + 0.3 * len(domains) * (len(summaries) + 1)), 20.0)
    if len(records) > MAX_CURVES:
        figure = Figure(figsize=(span, 4.6), dpi=style.DPI, layout="constrained")
        axes = figure.subplots()
    else:
        size = (max(span, 7.0 * len(records)), 9.4)
        figure = Figure(figsize=size, dpi=style.DPI, layout="constrained")
        rows: Any = figure.subfigures(2, 1, height_ratios=(4.8, 4.6))
        upper, lower = rows
        panels = upper.subplots(1, len(records), sharey=True, squeeze=False)[0]
        ends = [_draw_curves(panel, run) for panel, run in zip(panels, records, strict=True)]
        for panel, end, summary in zip(panels, ends, summaries, strict=True):
            _label_ends(panel, end)  # now that all panels have one scale
            panel.set_title(summary["name"], loc="left", fontsize=11, color=INK, pad=18)
        axes = lower.subplots()
    _draw_bars(axes, summaries, bars, domains, "nats per token" if alike else "bits per byte")
    save_png(figure, path)


def _draw_bars(
    axes: Axes,
    summaries: Sequence[dict[str, Any]],
    bars: NDArray[np.float64],
    domains: Sequence[str],
    unit: str,
) -> None:
    """What was forgotten, bars [runs, domains]."""
    width = 0.8 / len(summaries)
    for k, (summary, heights) in enumerate(zip(summaries, bars, strict=True)):
        axes.bar(
            np.arange(len(domains)) + (k - (len(summaries) - 1) / 2) * width,
            heights,
            width=0.92 * width,
            color=COLOURS[k % len(COLOURS)],
            hatch=("", "//", "..")[k // len(COLOURS) % 3],
            edgecolor="white",
            label=summary["name"],
            zorder=2,
        )
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(range(len(domains)), domains, rotation=30 if len(domains) > 8 else 0)
    axes.set_ylabel(f"forgotten, {unit} (lower is better)")
    title = "Rise of the loss since each domain's own training, to the end of the run"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    clean(axes)


def _forgotten(summary: dict[str, Any], domains: list[str], alike: bool) -> list[float]:
    """Bar heights; NaN where nothing was trained afterwards: zero would look like a success."""
    matrix = matrix_of(summary).select(domains)
    exposed = exposed_rows(matrix.order)
    values = per_domain(matrix.loss if alike else matrix.bits_per_byte, matrix.order)
    return [
        np.nan if value is None or i not in exposed else value for i, value in enumerate(values)
    ]


def _draw_curves(axes: Axes, records: RunRecords) -> list[tuple[float, str, str]]:
    """Validation score of each domain over total tokens, on the text that is scored inside phases;
    its own phases are drawn thicker. Returns what `_label_ends` takes."""
    in_bytes = all(e.inside.num_bytes for e in records.evaluations)
    ends: list[tuple[float, str, str]] = []
    last = 0
    for i, domain in enumerate(records.domains):
        points = {
            e.tokens: e.inside.bits_per_byte if in_bytes else e.inside.loss
            for e in records.evaluations
            if e.domain == domain
        }
        if not points:
            continue
        tokens = np.array(sorted(points))
        scores = np.array([points[at] for at in sorted(points)])
        colour, dash = line_style(i)
        axes.plot(tokens, scores, color=colour, linestyle=dash, linewidth=1.5, marker=".", zorder=3)
        for begin, end in _own_phases(records, i, int(tokens[-1])):
            own = (tokens >= begin) & (tokens <= end)
            axes.plot(tokens[own], scores[own], color=colour, linewidth=4.2, zorder=4)
        last = max(last, int(tokens[-1]))
        if np.isfinite(scores[-1]):
            ends.append((float(scores[-1]), domain, colour))
    _draw_phases(axes, records, last)
    clean(axes)
    axes.set_xlim(-0.01 * last, last * 1.005 or 1)
    axes.set_xlabel("trained tokens (thick: while the domain itself is trained)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    unit = "bits per byte" if in_bytes else "loss, nats per token"
    axes.set_ylabel(f"validation {unit} (lower is better)")
    return ends


def _draw_phases(axes: Axes, records: RunRecords, last: int) -> None:
    """Borders between phases, and the name of the trained domain above each."""
    many = len(records.order) > 8
    for phase, index in enumerate(records.order):
        begin = phase_begin(records, phase)
        if begin is None or begin >= last:
            break
        end = phase_begin(records, phase + 1)
        middle = (begin + min(last, last if end is None else end)) / 2
        axes.axvline(begin, color=FAINT, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        axes.annotate(
            "all domains" if index == OTHER_DOMAIN else records.domains[index],
            (middle, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="left" if many else "center",
            va="bottom",
            rotation=45 if many else 0,
            color=INK if index == OTHER_DOMAIN else line_style(index)[0],
            fontsize=8 if many else 9.5,
            fontweight="bold",
        )


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right end of the curves, pushed apart where they would overlap.

    Args:
        axes: with their final limits.
        ends: last score, domain, colour of each curve.
    """
    if not ends:
        return
    ends = sorted(ends)
    low, high = axes.get_ylim()
    # A label is about 0.045 of the axes high; with many domains they shrink to fit.
    gap = min(0.045, 0.98 / len(ends))
    places = [(score - low) / (high - low) for score, _, _ in ends]
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + gap)
    overflow = places[-1] - 1.0
    for k in range(len(places) - 1, -1, -1):
        if overflow > 0:
            limit = 1.0 if k == len(places) - 1 else places[k + 1] - gap
            places[k] = min(places[k], limit)
    for place, (score, domain, colour) in zip(places, ends, strict=True):
        axes.annotate(
            domain,
            (1.0, (score - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(1.025, place),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=9.5 if gap >= 0.045 else 7.5,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
                "shrinkA": 1,
                "shrinkB": 1,
            },
        )


def _draw_matrix(axes: Axes, matrix: ResultMatrix) -> None:
    """The loss matrix as a heat map; a frame marks the domain just trained."""
    rows, columns = matrix.loss.shape
    # Colours span the trained rows: the untrained model is far worse and would flatten the rest.
    shown = matrix.loss[1:] if matrix.num_phases else matrix.loss
    finite = shown[np.isfinite(shown)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    scale = Normalize(low, high if high > low else low + 1.0, clip=True)
    axes.imshow(matrix.loss, cmap="cividis_r", norm=scale, aspect="auto")
    _write_numbers(axes, matrix.loss, scale)
    for phase, index in enumerate(matrix.order):
        width = 0.94 if index != OTHER_DOMAIN else columns - 0.06  # a joint phase trains them all
        corner = (max(index, 0) - 0.47, phase + 0.53)
        axes.add_patch(Rectangle(corner, width, 0.94, fill=False, edgecolor="black", linewidth=2))
    axes.set_xticks(range(columns), matrix.domains, fontsize=9)
    if columns > 3:
        for label in axes.get_xticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")
    labels = [f"after {p} {matrix.trained(p)}" for p in range(matrix.num_phases)]
    axes.set_yticks(range(rows), ["before training", *labels], fontsize=9)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    title = "loss, nats per token\nframed: the domain just trained"
    axes.set_title(title, fontsize=9, color=INK, loc="left")


def _write_numbers(axes: Axes, loss: NDArray[np.float64], scale: Normalize) -> None:
    size = 9 if loss.shape[0] <= 10 and loss.shape[1] <= 10 else 7
    for (j, i), value in np.ndenumerate(loss):
        finite = bool(np.isfinite(value))
        shade = "white" if finite and scale(float(value)) > 0.5 else "black"
        text = f"{value:.2f}" if finite else "-"
        axes.text(i, j, text, ha="center", va="center", color=shade, fontsize=size)


def _own_phases(records: RunRecords, domain: int, last: int) -> list[tuple[int, int]]:
    """(begin, end) in total tokens of the phases that train a domain, as far as the run went."""
    spans = []
    for phase, index in enumerate(records.order):
        begin, end = phase_begin(records, phase), phase_begin(records, phase + 1)
        if index == domain and begin is not None:
            spans.append((begin, last if end is None else end))
    return spans


def _title(records: RunRecords, matrix: ResultMatrix) -> str:
    forgotten = f_last(matrix.loss, matrix.order)
    score = "" if forgotten is None else f"   F_last {forgotten:.3f} nats per token"
    density = records.header.get("density", {}).get("masked")
    share = "" if density is None else f"   density {density:.3g}"
    return f"{records.name}{share}{score}"
