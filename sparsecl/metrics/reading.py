"""What a run has read of each domain's training text, beside what was planned."""

from collections.abc import Mapping
from typing import Any

from sparsecl.metrics.passes import pass_warnings, passes
from sparsecl.metrics.records import PhaseMark, RunRecords


def reading(records: RunRecords, num_phases: int) -> dict[str, Any] | None:
    """Tokens and passes, planned for the whole run and read in its finished phases; replayed tokens
    are in both. None for runs of earlier versions, which do not state the sizes of their text.

    A phase that ended early has read less than was planned. What a phase of all domains read, or
    what was replayed of it, is parted among them as planned.
    """
    sizes = records.header.get("train_tokens")
    planned = records.header.get("planned")
    if not sizes or planned is None:
        return None
    read = [_read(records, phase, planned) for phase in range(num_phases)]
    return {
        "train_tokens": sizes,
        "planned_passes": passes(planned, sizes),
        "passes": passes(read, sizes),
        "phases": [
            {"planned": tokens, "read": read[phase] if phase < num_phases else None}
            for phase, tokens in enumerate(planned)
        ],
    }


def planned_often(records: RunRecords) -> list[str]:
    """One line for each domain whose text was planned to be read too often."""
    header = records.header
    return pass_warnings(header.get("planned", []), header.get("train_tokens", {}))


def _read(records: RunRecords, phase: int, planned: list[Mapping[str, int]]) -> dict[str, int]:
    """Domain -> tokens of one finished phase."""
    before, end = _mark(records, phase - 1), _mark(records, phase)
    if end is None:
        return {}
    tokens = {}
    _add(tokens, records, phase, end.tokens - (before.tokens if before else 0), planned)
    known = before.replayed_by_phase if before else ()
    for origin, count in enumerate(end.replayed_by_phase):
        again = count - (known[origin] if origin < len(known) else 0)
        _add(tokens, records, origin, again, planned)
    return tokens


def _add(
    tokens: dict[str, int],
    records: RunRecords,
    phase: int,
    count: int,
    planned: list[Mapping[str, int]],
) -> None:
    """Add tokens of a phase's own text to its domain, or to all domains."""
    index = records.order[phase]
    parts = {records.domains[index]: 1} if index >= 0 else planned[phase]
    whole = max(1, sum(parts.values()))
    for name, part in parts.items():
        added = round(count * part / whole)
        if added:
            tokens[name] = tokens.get(name, 0) + added


def _mark(records: RunRecords, phase: int) -> PhaseMark | None:
    """The end of a phase."""
    ends = (mark for mark in records.phases if mark.phase == phase and mark.event == "end")
    return next(ends, None)
