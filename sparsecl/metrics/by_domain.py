"""Several runs domain by domain: what each had learned, what was left at the end, what was lost.

learned = loss right after the domain's last phase, final = loss at the end of the run, forgotten =
their difference, a term of F_last. Nats per token; bits per byte where the tokenizers differ.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sparsecl.metrics.comparison import MAX_RUN_NAME, common_domains, one_tokenizer
from sparsecl.metrics.forgetting import exposed_rows, last_rows, mean
from sparsecl.metrics.summary import matrix_of
from sparsecl.metrics.table import WIDTH, clip, number

COLUMNS = ("learned", "final", "forgotten")
CELL = 10
MEAN = "mean"

Losses = dict[str, dict[str, float | None]]
"""Domain, or MEAN -> column -> value; None where there is none."""


def losses_by_domain(summary: Mapping[str, Any], domains: Sequence[str], *, alike: bool) -> Losses:
    """The figures of one run. The mean of `learned` is over the domains that were trained, of
    `final` over all, and of `forgotten` over those that others followed: it is F_last.

    Args:
        alike: in nats per token; else in bits per byte.
    """
    matrix = matrix_of(dict(summary)).select(list(domains))
    scores = matrix.loss if alike else matrix.bits_per_byte
    own = {i: float(scores[row, i]) for i, row in last_rows(matrix.order).items()}
    final = [float(score) for score in scores[-1]]
    lost = {i: final[i] - own[i] for i in exposed_rows(matrix.order)}
    found: Losses = {
        name: {"learned": own.get(i), "final": final[i], "forgotten": lost.get(i)}
        for i, name in enumerate(domains)
    }
    terms = (list(own.values()), final, list(lost.values()))
    found[MEAN] = dict(zip(COLUMNS, map(mean, terms), strict=True))
    return found


def by_domain(summaries: Sequence[dict[str, Any]], width: int = WIDTH) -> str:
    """The table, over the domains that all runs have, in blocks of runs that fit `width`.

    Raises:
        ValueError: the runs have no domain in common.
    """
    domains = common_domains(summaries)
    if not domains:
        raise ValueError("the runs have no domain in common, so nothing can be compared")
    alike = one_tokenizer(summaries)
    figures = [losses_by_domain(summary, domains, alike=alike) for summary in summaries]
    labels = [clip(name, MAX_RUN_NAME - 2) for name in domains] + [MEAN]
    left, wide = max(map(len, labels)), CELL * len(COLUMNS)
    per_block = max(1, (width - left) // wide)
    unit = "nats per token" if alike else "bits per byte"
    lines = [f"Loss by domain, {unit} (lower is better)", ""]
    for start in range(0, len(summaries), per_block):
        part = slice(start, start + per_block)
        names = [clip(summary["name"], wide - 2) for summary in summaries[part]]
        lines.append(" " * left + "".join(name.rjust(wide) for name in names))
        lines.append(" " * left + "".join(name.rjust(CELL) for name in COLUMNS) * len(names))
        for label, name in zip(labels, [*domains, MEAN], strict=True):
            cells = [number(one[name][column]) for one in figures[part] for column in COLUMNS]
            lines.append(label.ljust(left) + "".join(cell.rjust(CELL) for cell in cells))
        lines.append("")
    lines.append("learned: right after its own training; final: at the end; forgotten: the rise")
    lines.append("between them, whose mean is F_last (a domain that nothing followed has none)")
    return "\n".join(lines)
