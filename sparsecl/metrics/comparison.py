"""Several runs side by side as text, over the domains that all of them have."""

from collections.abc import Sequence
from typing import Any

from sparsecl.metrics import transfer
from sparsecl.metrics.matrix import ResultMatrix
from sparsecl.metrics.summary import forgetting_figures, matrix_of
from sparsecl.metrics.table import WIDTH, clip, number

MAX_RUN_NAME = 28

LEGEND = (
    ("density", "live share of the masked matrices"),
    ("F_last, F_std, F_seed", "forgetting in nats per token by three definitions; lower is better"),
    ("NF", "share of what was learned that was lost again; lower is better"),
    ("BWT, FWT", "backward and forward transfer in nats per token; higher is better"),
    ("loss, bits/B", "mean of the last row in nats per token, bits per byte; lower is better"),
    ("acc", "mean next-token accuracy of the last row; higher is better"),
    ("tok/s", "trained tokens per second over the whole run"),
)


def side_by_side(summaries: Sequence[dict[str, Any]], width: int = WIDTH) -> str:
    """One line a run. Figures use the domains common to all runs; differences are named below.

    Raises:
        ValueError: if there is no run, or the runs have no domain in common.
    """
    if not summaries:
        raise ValueError("there is no run to compare")
    common = common_domains(summaries)
    if not common:
        raise ValueError("the runs have no domain in common, so nothing can be compared")
    rows = [_row(summary, matrix_of(summary).select(common)) for summary in summaries]
    table = _align([summary["name"] for summary in summaries], rows, width)
    notes = [f"note: {text}" for text in _notes(summaries, common)]
    left = max(len(names) for names, _ in LEGEND) + 2
    legend = [f"  {names:<{left}}{meaning}" for names, meaning in LEGEND]
    return "\n".join([*table, "", *legend, *([""] if notes else []), *notes])


def common_domains(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Domains of every run, in the order of the first."""
    shared = set.intersection(*(set(summary["domains"]) for summary in summaries))
    return [name for name in summaries[0]["domains"] if name in shared]


def _row(summary: dict[str, Any], matrix: ResultMatrix) -> dict[str, str]:
    figures = forgetting_figures(matrix.loss, matrix.order)
    values = {
        "density": summary["density"].get("masked"),
        **{name: figures[name] for name in ("F_last", "F_std", "F_seed", "NF")},
        "BWT": transfer.bwt(matrix.loss, matrix.order),
        "FWT": transfer.fwt(matrix.loss, matrix.order),
        "loss": transfer.average_all(matrix.loss, matrix.order)[-1],
        "bits/B": transfer.average_all(matrix.bits_per_byte, matrix.order)[-1],
        "acc": transfer.average_all(matrix.accuracy, matrix.order)[-1],
    }
    texts = {name: number(value) for name, value in values.items()}
    return {**texts, "tok/s": number(summary["tokens_per_second"], 0)}


def _align(names: Sequence[str], rows: list[dict[str, str]], width: int) -> list[str]:
    """Header and one line a run; names give way if the line would not fit."""
    columns = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
    longest = min(MAX_RUN_NAME, max(len(name) for name in names))
    for gap in ("  ", " "):
        room = width - sum(columns.values()) - len(columns) * len(gap)
        if room >= longest:
            break
    left = max(3, min(longest, room))
    lines = ["run".ljust(left) + "".join(gap + key.rjust(size) for key, size in columns.items())]
    for name, row in zip(names, rows, strict=True):
        cells = "".join(gap + row[key].rjust(size) for key, size in columns.items())
        lines.append(clip(name, left).ljust(left) + cells)
    return lines


def _notes(summaries: Sequence[dict[str, Any]], common: list[str]) -> list[str]:
    """What a reader must know before believing the comparison."""
    notes = []
    for summary in summaries:
        dropped = [name for name in summary["domains"] if name not in common]
        if dropped:
            notes.append(f"{summary['name']}: not compared, absent elsewhere: {', '.join(dropped)}")
        notes += [f"{summary['name']}: {warning}" for warning in summary["warnings"]]
        if summary["audit"]["nonzero"]:
            count = summary["audit"]["nonzero"]
            notes.append(f"{summary['name']}: the audit found {count} nonzero absent entries")
    if any(len(summary["domains"]) > len(common) for summary in summaries):
        notes.append(f"compared over {len(common)} common domains: {', '.join(common)}")
    plans = {tuple(s["domains"][i] if i >= 0 else "" for i in s["order"]) for s in summaries}
    if len(plans) > 1:
        notes.append("the runs do not train the same domains in the same order")
    return notes
