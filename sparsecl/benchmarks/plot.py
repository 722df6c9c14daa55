"""Results as a picture (PNG), one function for each mode."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecl.benchmarks.arms import BASELINE
from sparsecl.benchmarks.checkpoints import WAYS
from sparsecl.benchmarks.layers import BLOCK
from sparsecl.benchmarks.memory import STATE


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a result's mode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from sparsecl.files import atomic_open

    figure = plt.figure(figsize=(8, 5), layout="constrained")
    PLOTS[result["mode"]](figure, result)
    with atomic_open(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)


def _by_density(figure: Any, result: Mapping[str, Any]) -> None:
    """Ratio to dense against density, a line for each arm, quartiles as bars."""
    axes = figure.subplots()
    steps = result["mode"] == "steps"
    lines: dict[str, list[tuple[float, Mapping[str, float]]]] = {}
    for group in result["groups"]:
        arms = group["arms"] if steps else group["units"][BLOCK]
        for name, arm in arms.items():
            if name != BASELINE:
                lines.setdefault(name, []).append((group["density"], arm["ratio"]))
    for name, points in lines.items():
        x = [density for density, _ in points]
        y = [ratio["median"] for _, ratio in points]
        below = [ratio["median"] - ratio["q1"] for _, ratio in points]
        above = [ratio["q3"] - ratio["median"] for _, ratio in points]
        axes.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, label=name)
    axes.axhline(1.0, color="gray", linewidth=1)
    axes.set(xscale="log", xlabel="density", ylabel=f"time relative to {BASELINE}")
    axes.set_title("whole step" if steps else "linears of one block")
    axes.legend()


def _growth(figure: Any, result: Mapping[str, Any]) -> None:
    """Step time against each axis, both logarithmic."""
    from matplotlib.ticker import NullLocator

    figure.set_size_inches(12, 4.5)
    axes = list(dict.fromkeys(line["axis"] for line in result["lines"]))
    for panel, name in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        lines = [line for line in result["lines"] if line["axis"] == name]
        for line in lines:
            times = [point["step"] * 1e3 for point in line["median_seconds"]]
            slope = line["slopes"]["step"]["exponent"]
            panel.plot(line["sizes"], times, marker="o", label=f"{line['arm']}, k = {slope:.2f}")
        panel.set(xscale="log", yscale="log", xlabel=name.replace("_", " "), ylabel="step, ms")
        points = sorted({size for line in lines for size in line["sizes"]})
        panel.set_xticks(points, [f"{x:.3g}" if x >= 1e5 else f"{x:,}" for x in points])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.legend(fontsize="small")


def _memory(figure: Any, result: Mapping[str, Any]) -> None:
    """Model state by part, measured; the formulas' total as a mark."""
    axes = figure.subplots()
    rows = result["rows"]
    places = range(len(rows))
    bottom = [0.0] * len(rows)
    for part in STATE:
        sizes = [row["measured"][part] / 1e6 for row in rows]
        axes.bar(places, sizes, bottom=bottom, label=part)
        bottom = [low + size for low, size in zip(bottom, sizes, strict=True)]
    totals = [row["formula"]["state"] / 1e6 for row in rows]
    axes.plot(places, totals, linestyle="", marker="_", markersize=24, color="k", label="formula")
    labels = [f"{row['arm']}\n{row['density']:g}" for row in rows]
    axes.set_xticks(places, labels, rotation=45)
    axes.set_ylabel("model state, MB")
    axes.margins(y=0.05)
    axes.legend()


def _wire(figure: Any, result: Mapping[str, Any]) -> None:
    """Counted bytes by arm, a bar for each ZeRO stage; what is expected as a mark."""
    axes = figure.subplots()
    rows = result["rows"]
    arms = list(dict.fromkeys((row["arm"], row["density"]) for row in rows))
    stages = sorted({row["stage"] for row in rows})
    for row in rows:
        place = arms.index((row["arm"], row["density"])) + 0.2 * row["stage"]
        first = (row["arm"], row["density"]) == arms[0]
        label = f"ZeRO {row['stage']}" if first else None
        color = f"C{stages.index(row['stage'])}"
        axes.bar(place, row["bytes"] / 1e6, width=0.18, color=color, label=label)
        axes.plot([place - 0.09, place + 0.09], [row["expected"] / 1e6] * 2, color="k")
    axes.set_xticks([k + 0.3 for k in range(len(arms))], [f"{n}\n{d:g}" for n, d in arms])
    axes.set_ylabel("gradient bytes of one reduction, MB (line: expected)")
    axes.legend()


def _checkpoints(figure: Any, result: Mapping[str, Any]) -> None:
    """Bytes, and the stall of both ways with its quartiles, against density."""
    figure.set_size_inches(12, 4.5)
    left, right = figure.subplots(1, 2)
    rows = result["rows"]
    for index, name in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        own = sorted((row for row in rows if row["arm"] == name), key=lambda row: row["density"])
        x = [row["density"] for row in own]
        # Hollow: arms that save the same bytes lie upon each other.
        look = {"color": f"C{index}", "marker": "osD^v"[index % 5], "fillstyle": "none"}
        left.plot(x, [row["bytes"] / 1e6 for row in own], label=name, **look)
        for way, line, fill in zip(WAYS, ("-", "--"), ("full", "none"), strict=True):
            stalls = [row["stall"][way] for row in own]
            y = [stall["median"] * 1e3 for stall in stalls]
            below = [(stall["median"] - stall["q1"]) * 1e3 for stall in stalls]
            above = [(stall["q3"] - stall["median"]) * 1e3 for stall in stalls]
            look |= {"capsize": 3, "linestyle": line, "fillstyle": fill}
            right.errorbar(x, y, yerr=[below, above], label=f"{name}, {way}", **look)
    left.set(xscale="log", yscale="log", xlabel="density", ylabel="checkpoint, MB")
    right.set(xscale="log", yscale="log", xlabel="density", ylabel="stall, ms")
    for axes in (left, right):
        axes.legend(fontsize="small")


PLOTS = {
    "steps": _by_density,
    "per_layer": _by_density,
    "growth": _growth,
    "memory": _memory,
    "wire": _wire,
    "checkpoints": _checkpoints,
}
