"""Several runs side by side as text, over the domains that all of them have.

A nat per token means another thing under another tokenizer: runs whose tokenizers differ are
compared in bits per byte alone. All else that makes their figures unlike is said in a line.
"""

from collections.abc import Sequence
from typing import Any

from sparsecl.metrics import transfer
from sparsecl.metrics.columns import align, column_widths
from sparsecl.metrics.forgetting import MIN_IMPROVEMENT, counted_shares, exposed_rows, mean
from sparsecl.metrics.matrix import ResultMatrix
from sparsecl.metrics.summary import forgetting_figures, matrix_of
from sparsecl.metrics.table import WIDTH, audit_finding, clip, number

MAX_RUN_NAME = 28

# Columns -> meaning; {unit} is nats per token, or bits per byte across tokenizers.
LEGEND = (
    (("density",), "live share of the masked matrices"),
    (("F_last", "F_std", "F_seed"), "forgetting in {unit} by three definitions; lower is better"),
    (("NF",), "share of what was learned that was lost again; lower is better"),
    (("BWT", "FWT"), "backward and forward transfer in {unit}; higher is better"),
    (("loss",), "mean of the last row in nats per token; lower is better"),
    (("bits/B",), "mean of the last row in bits per byte; lower is better"),
    (("acc",), "mean next-token accuracy of the last row; higher is better"),
    (("tok/s",), "trained tokens per second over the whole run"),
)

PER_TOKEN = ("NF", "loss", "acc", "tok/s")
"""Columns that mean nothing across tokenizers. NF is left out for its threshold in nats."""


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
    matrices = [matrix_of(summary).select(common) for summary in summaries]
    shares = [counted_shares(matrix.loss, matrix.order) for matrix in matrices]
    counted = [i for i in shares[0] if all(i in one for one in shares)]
    alike = one_tokenizer(summaries)
    rows = [
        _row(summary, matrix, [one[i] for i in counted], alike)
        for summary, matrix, one in zip(summaries, matrices, shares, strict=True)
    ]
    table = _align([summary["name"] for summary in summaries], rows, width)
    notes = _notes(summaries, common)
    exposed = {i for matrix in matrices for i in exposed_rows(matrix.order)}
    if alike and len(counted) < len(exposed):
        notes.append(
            f"NF is over the {len(counted)} of {len(exposed)} domains that every run learned by "
            f"{MIN_IMPROVEMENT:g} nats per token or more"
        )
    notes = [f"note: {text}" for text in notes]
    unit = "nats per token" if alike else "bits per byte"
    lines = {", ".join(n for n in names if n in rows[0]): text for names, text in LEGEND}
    left = max(map(len, lines)) + 2
    legend = [
        f"  {names:<{left}}{text.format(unit=unit)}" for names, text in lines.items() if names
    ]
    return "\n".join([*table, "", *legend, *([""] if notes else []), *notes])


def common_domains(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Domains of every run, in the order of the first."""
    shared = set.intersection(*(set(summary["domains"]) for summary in summaries))
    return [name for name in summaries[0]["domains"] if name in shared]


def one_tokenizer(summaries: Sequence[dict[str, Any]]) -> bool:
    """Do the runs share their tokenizer, as far as it is recorded?"""
    return len({digest for s in summaries if (digest := s["digests"].get("tokenizer"))}) < 2


def _row(
    summary: dict[str, Any], matrix: ResultMatrix, shares: Sequence[float], alike: bool
) -> dict[str, str]:
    scores = matrix.loss if alike else matrix.bits_per_byte
    figures = forgetting_figures(scores, matrix.order)
    values = {
        "density": summary["density"].get("masked"),
        **{name: figures[name] for name in ("F_last", "F_std", "F_seed")},
        "NF": mean(shares),
        "BWT": transfer.bwt(scores, matrix.order),
        "FWT": transfer.fwt(scores, matrix.order),
        "loss": transfer.average_all(matrix.loss, matrix.order)[-1],
        "bits/B": transfer.average_all(matrix.bits_per_byte, matrix.order)[-1],
        "acc": transfer.average_all(matrix.accuracy, matrix.order)[-1],
    }
    texts = {name: number(value) for name, value in values.items()}
    texts["tok/s"] = number(summary["tokens_per_second"], 0)
    return {name: text for name, text in texts.items() if alike or name not in PER_TOKEN}


def _unlike(summaries: Sequence[dict[str, Any]], common: list[str]) -> list[str]:
    """ "name (value, value)" of whatever makes the figures of runs unlike, but what is compared."""
    found: dict[str, dict[str, None]] = {}
    for summary in summaries:
        for name, value in _setting(summary, common).items():
            if value is not None:
                found.setdefault(name, {})[f"{value}"] = None
    return [f"{name} ({', '.join(values)})" for name, values in found.items() if len(values) > 1]


def _setting(summary: dict[str, Any], common: list[str]) -> dict[str, Any]:
    digests, config = summary["digests"], summary["config"]
    scored, trained = summary["scored"], summary["trained"]
    windows = all("windows" in scored[name] for name in common if name in scored)
    texts = [scored[name]["bytes"] for name in common if name in scored]
    return {
        "tokenizer": (digests.get("tokenizer") or "")[:8] or None,
        "vocabulary": config.get("vocabulary"),
        "prepared data": (digests.get("data") or "")[:8] or None,
        "parameters of the model": summary["parameters"].get("total"),
        **{name: config.get(name) for name in ("layers", "width", "context", "sequences", "lr")},
        "steps": trained["steps"],
        "training tokens": trained["tokens"],
        "evaluated bytes": sum(texts) if texts else None,
        "evaluated text": "spread over all" if windows else "from the start",
    }


def _align(names: Sequence[str], rows: list[dict[str, str]], width: int) -> list[str]:
    """Header and one line a run; names give way if the line would not fit."""
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    columns = column_widths(cells)
    longest = min(MAX_RUN_NAME, max(len(name) for name in names))
    for gap in ("  ", " "):
        room = width - sum(columns) - len(columns) * len(gap)
        if room >= longest:
            break
    left = max(3, min(longest, room))
    first = ["run", *(clip(name, left) for name in names)]
    table = [[name, *row] for name, row in zip(first, cells, strict=True)]
    return align(table, widths=[left, *columns], gap=gap)


def _notes(summaries: Sequence[dict[str, Any]], common: list[str]) -> list[str]:
    """What a reader must know before believing the comparison."""
    notes = []
    unlike = _unlike(summaries, common)
    if not one_tokenizer(summaries):
        notes.append(
            "the tokenizers differ, so a token is not the same text in all runs: figures per token "
            "are left out, and forgetting is in bits per byte"
        )
    if unlike:
        notes.append(f"the runs differ in {'; '.join(unlike)}")
    for summary in summaries:
        dropped = [name for name in summary["domains"] if name not in common]
        if dropped:
            notes.append(f"{summary['name']}: not compared, absent elsewhere: {', '.join(dropped)}")
        notes += [f"{summary['name']}: {warning}" for warning in summary["warnings"]]
        if summary["audit"]["nonzero"]:
            found = audit_finding(summary["audit"])
            notes.append(f"{summary['name']}: the audit found {found}")
    if any(len(summary["domains"]) > len(common) for summary in summaries):
        notes.append(f"compared over {len(common)} common domains: {', '.join(common)}")
    orders = {tuple(s["domains"][i] if i >= 0 else "" for i in s["order"]) for s in summaries}
    if len(orders) > 1:
        notes.append("the runs do not train the same domains in the same order")
    return notes
