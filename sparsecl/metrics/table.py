"""The scores of one run as text for a terminal: plain ASCII, at most WIDTH columns."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from sparsecl.metrics.columns import align
from sparsecl.metrics.forgetting import MIN_IMPROVEMENT, exposed_rows
from sparsecl.metrics.matrix import OTHER_DOMAIN, ResultMatrix
from sparsecl.metrics.passes import number_text
from sparsecl.metrics.performance import performance_lines
from sparsecl.metrics.summary import matrix_of

WIDTH = 100
TOLD = "matrix_with_identity"
MAX_NAME = 12  # a column of the matrix; longer domain names are clipped

# (key in the summary, meaning). One definition, one line, one direction.
FIGURES = (
    ("F_last", "rise of the loss since each domain's own training; lower is better"),
    ("F_std", "same, but since the best row from its training on; lower is better"),
    ("F_seed", "since the best row after any phase, last domain counted too; lower is better"),
    ("NF", "share of what was learned that was lost again; lower is better"),
    ("BWT", "effect of later phases on earlier domains, = -F_last; higher is better"),
    ("FWT", "lead of a domain over row 0 just before its own training; higher is better"),
)


def report(summary: dict[str, Any], width: int = WIDTH) -> str:
    """Everything a reader wants of one run: what it was, the matrix, figures, audit, cost."""
    parts = [
        "\n".join(_heading(summary, width)),
        matrix_table(summary, width),
        matrix_table(summary, width, key=TOLD) if TOLD in summary else "",
        figures_table(summary),
        "\n".join(_speed_lines(summary)),
        audit_line(summary),
        "\n".join(performance_lines(summary.get("performance"))),
    ]
    text = "\n\n".join(part for part in parts if part)
    # Records may come from anywhere; what is in them may not steer the reader's terminal.
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def matrix_table(summary: dict[str, Any], width: int = WIDTH, *, key: str = "matrix") -> str:
    """Losses, rows in time and columns by domain, split into blocks that fit `width`.

    Brackets mark the domain trained just before the row was measured.

    Args:
        key: "matrix", or TOLD for the one whose methods are told the domain.
    """
    matrix = matrix_of(summary, key)
    labels = ["before training"]
    labels += [f"after {p} {clip(matrix.trained(p), MAX_NAME)}" for p in range(matrix.num_phases)]
    rows = [[number(loss) for loss in row] for row in matrix.loss.tolist()]
    for phase, index in enumerate(matrix.order):
        if index != OTHER_DOMAIN:
            rows[phase + 1][index] = f"[{rows[phase + 1][index]}]"
    # A space keeps the digits of cells without brackets in line with the others.
    rows = [[cell if cell.endswith("]") else cell + " " for cell in row] for row in rows]
    title = "Validation loss, nats per token (lower is better). [ ] = the domain just trained."
    if key == TOLD:
        title = "The same, where a method is told which domain is tested (flag I)."
        foot = _cells(_score_values(matrix))
    else:
        title += "\nNo method is told which domain is tested." if TOLD in summary else ""
        foot = _domain_lines(summary)
    return "\n".join([title, "", *_blocks(matrix.domains, labels, rows, foot, width)])


def figures_table(summary: dict[str, Any]) -> str:
    """Forgetting by name of its definition, then transfer; nats per token except NF."""
    values = {**summary["forgetting"], "BWT": summary["bwt"], "FWT": summary["fwt"]}
    lines = ["Forgetting and transfer, nats per token (NF: a share)", ""]
    lines += [f"  {name:<7}{number(values[name]):>8}   {meaning}" for name, meaning in FIGURES]
    told = summary.get("forgetting_with_identity", {})
    if told:
        found = ", ".join(f"{name} {number(value)}" for name, value in told.items())
        lines.append(f"  Where a method is told the domain: {found}")
    counted = summary["forgetting"].get("NF_domains")
    if counted and counted["counted"] < counted["of"]:
        lines.append(
            f"  NF: {counted['counted']} of {counted['of']} domains count; the others gained under "
            f"{MIN_IMPROVEMENT:g} nats per token"
        )
    return "\n".join(lines)


def audit_line(summary: dict[str, Any]) -> str:
    """How often absent and held weights were checked, and what was found."""
    audit = summary["audit"]
    if not audit["checks"]:
        return "audit: no checks were recorded"
    held = audit.get("held")  # earlier versions did not count them
    last = f"; {held:,} weights held at the last one" if held else ""
    return f"audit: {audit['checks']} checks, {audit_finding(audit)}{last}"


def audit_finding(audit: dict[str, Any]) -> str:
    """What the audits of a run found, in words."""
    held = audit.get("held")
    what = "moved entries of absent and held weights" if held else "nonzero absent entries"
    return f"{audit['nonzero']} {what}"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed point; "-" for None and NaN, no negative zero."""
    if value is None or value != value:
        return "-"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def clip(name: str, length: int) -> str:
    """Shorten a name in its middle: both ends tell runs apart."""
    if len(name) <= length:
        return name
    tail = (length - 2) // 2
    return f"{name[: length - 2 - tail]}..{name[len(name) - tail :]}"


def _heading(summary: dict[str, Any], width: int) -> list[str]:
    phases = summary["phases"]
    lines = [f"run {summary['name']}: {phases['finished']} of {phases['planned']} phases finished"]
    settings = ", ".join(_settings(summary["config"]))
    density, parameters = summary["density"], summary["parameters"]
    if settings:
        lines.append(f"settings: {settings}")
    if density:
        final = summary.get("final_density", density)
        end = f"; at the end {number(final.get('masked'))} and {number(final.get('model'))}"
        lines.append(
            f"density: {number(density.get('masked'))} of the masked matrices, "
            f"{number(density.get('model'))} of the model{end if final != density else ''}"
        )
    moved = summary.get("turnover")
    if moved:
        came = " ".join(number(share) for share in moved["came"])
        lines.append(
            f"graph: came in each phase {came} of the live weights; a weight lives "
            f"{number(moved['lifetime'], 1)} steps; {number(moved['ever'])} of all cells have lived"
        )
    if parameters:
        lines.append(f"parameters: {parameters.get('live')} live of {parameters.get('total')}")
    methods = summary.get("methods")  # earlier versions did not say
    if methods:
        said = (f"{name} ({_method_text(method)})" for name, method in methods.items())
        lines.append(f"methods: {', '.join(said)}")
        lines += [line for name, method in methods.items() for line in _measured(name, method)]
    if summary["seconds"] is not None and summary.get("performance") is None:  # older runs
        speed = number(summary["tokens_per_second"], 0)
        lines.append(f"time: {number(summary['seconds'], 0)} seconds, {speed} tokens per second")
    lines += [f"note: {warning}" for warning in summary["warnings"]]
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ")]


def _method_text(method: dict[str, Any]) -> str:
    parts = [method["flags"] or "no flags"]
    if method["extra_parameters"]:
        parts.append(f"{method['extra_parameters']:,} parameters more")
    if method["replayed_tokens"]:
        parts.append(f"{method['replayed_tokens']:,} tokens trained again")
    return "; ".join(parts)


def _measured(name: str, method: dict[str, Any]) -> Iterator[str]:
    """What a method measured of itself, a line a figure, by phase."""
    ends = method.get("phase_ends", [])
    for figure in dict.fromkeys(key for end in ends for key in end):
        values = " ".join(number(end.get(figure)) for end in ends)
        yield f"{name}: {figure} at the end of each phase {values}"


def _settings(config: dict[str, Any]) -> list[str]:
    """ "key value" of the plain entries; a nested topology gives its kind and role."""
    topology = config.get("topology")
    plain = {**config, **topology} if isinstance(topology, dict) else config
    kept = {key: value for key, value in plain.items() if isinstance(value, str | int | float)}
    return [f"{key} {value}" for key, value in kept.items() if key != "name"]


def _domain_lines(summary: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The rows under the matrix: what is known of each domain at the end."""
    matrix = matrix_of(summary)
    lines = _score_values(matrix)
    counted = _text_lines(summary, matrix.domains)
    known = summary.get("entropy_rate") or {}
    if known:  # synthetic text, where nats per byte of the source itself are known
        limits = [known[n] / math.log(2) if n in known else None for n in matrix.domains]
        lines.insert(1, ("lowest possible b/B", limits))
    if matrix.num_phases:
        exposed = exposed_rows(matrix.order)
        names = [name for i, name in enumerate(matrix.domains) if i in exposed]
        for label, key in (
            ("forgotten, nats", "per_domain"),
            ("forgotten, share", "NF_per_domain"),
        ):
            values = summary["forgetting"][key]
            # "-" for the domain trained last: nothing came after it that could erase it.
            lines.append((label, [values[n] if n in names else None for n in matrix.domains]))
    return [*_cells(lines), *counted]


def _text_lines(summary: dict[str, Any], domains: Sequence[str]) -> list[tuple[str, list[str]]]:
    """How much text is behind the matrix, and how often the training text was read."""
    scored = [summary["scored"].get(name, {}) for name in domains]
    lines = [("scored tokens", [f"{of.get('tokens', '-')} " for of in scored])]
    if all("documents" in of for of in scored):
        documents = [f"{of['documents']}/{of['all']['documents']} " for of in scored]
        lines.insert(0, ("scored documents", documents))
        lines.insert(1, ("scored windows", [f"{of['windows']} " for of in scored]))
    if reading := summary.get("reading"):
        read = [f"{number_text(reading['passes'].get(name, 0.0))} " for name in domains]
        lines.append(("passes over its text", read))
    return lines


def _score_values(matrix: ResultMatrix) -> list[tuple[str, list[Any]]]:
    return [
        ("final bits per byte", matrix.bits_per_byte[-1].tolist()),
        ("final accuracy", matrix.accuracy[-1].tolist()),
    ]


def _cells(lines: list[tuple[str, list[Any]]]) -> list[tuple[str, list[str]]]:
    return [(label, [number(value) + " " for value in values]) for label, values in lines]


def _blocks(
    domains: Sequence[str],
    labels: list[str],
    rows: list[list[str]],
    foot: list[tuple[str, list[str]]],
    width: int,
) -> list[str]:
    """Lay out columns right-aligned, as many to a block as fit."""
    names = [clip(name, MAX_NAME) + " " for name in domains]
    left = max(len(label) for label in [*labels, *(label for label, _ in foot)]) + 1
    cell = max(len(text) for text in [*names, *(text for row in rows for text in row)]) + 1
    per_block = max(1, (width - left) // cell)
    lines: list[str] = []
    for start in range(0, len(names), per_block):
        whole = [("", names), *zip(labels, rows, strict=True), *foot]
        table = [[label, *texts[start : start + per_block]] for label, texts in whole]
        widths = [left, *[cell] * (len(table[0]) - 1)]
        block = align(table, widths=widths, gap="")
        block.insert(1 + len(labels), "-" * (sum(widths) - 1))
        lines += [*([""] if start else []), *block]
    return lines


def _speed_lines(summary: dict[str, Any]) -> list[str]:
    """Learning speed by phase; nothing if no curve was recorded."""
    phases = summary["learning_speed"]["phases"]
    if not phases:
        return []
    lines = [
        "Learning speed in each phase (mean loss: area under the curve / tokens; lower is better)",
        "",
        f"  {'phase':<18}{'first':>9}{'last':>9}{'mean':>9}{'tokens to half':>17}  measured on",
    ]
    for phase in phases:
        label = f"{phase['phase']} {clip(phase['domain'], MAX_NAME)}"
        lines.append(
            f"  {label:<18}{number(phase['first_loss']):>9}{number(phase['last_loss']):>9}"
            f"{number(phase['area']):>9}{number(phase['tokens_to_half'], 0):>17}  {phase['source']}"
        )
    return lines
