"""How fast a domain is learned within its own phase.

Two figures for each phase, both on the token axis, so that batch size does not matter:
- area: the mean loss over the phase, that is the area under the loss curve divided by the
  phase's tokens (nats/token, lower = faster);
- tokens to a loss threshold, None if the phase ended above it (censored, not infinite).

Curves come from validation, on the text that is scored inside phases. Where a phase was not
evaluated in between, two points say nothing about speed, and the logged training losses stand in;
the source is always named.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparsecl.metrics.forgetting import finite
from sparsecl.metrics.records import PhaseMark, RunRecords

HALFWAY = 0.5
"""Share of a phase's own improvement that `tokens_to_half` asks for."""


@dataclass(frozen=True, kw_only=True)
class PhaseCurve:
    """Loss of the trained domain against tokens since its phase began."""

    phase: int
    domain: str
    source: Literal["validation", "train"]
    tokens: tuple[int, ...]
    """Rising; not before 0."""
    loss: tuple[float, ...]
    """Nats per token, as long as `tokens`."""


def phase_curves(records: RunRecords) -> list[PhaseCurve]:
    """One curve for each phase with at least two measured points."""
    curves = []
    for phase, index in enumerate(records.order):
        begin = phase_begin(records, phase)
        if begin is None or index < 0:  # a joint phase has no domain of its own
            continue
        domain = records.domains[index]
        points, source = _validation(records, phase, domain, begin), "validation"
        if len(points) < 3:
            train = {p.tokens - begin: p.loss for p in records.train if p.phase == phase}
            if len(train) > len(points):
                points, source = train, "train"
        if len(points) >= 2:
            tokens = sorted(points)
            curves.append(
                PhaseCurve(
                    phase=phase,
                    domain=domain,
                    source=source,
                    tokens=tuple(tokens),
                    loss=tuple(points[at] for at in tokens),
                )
            )
    return curves


def area(curve: PhaseCurve, first_tokens: int | None = None) -> float | None:
    """Mean loss over the phase, or over its first tokens, by the trapezoid rule; nats/token.

    None if the curve is shorter than `first_tokens` or not finite.
    """
    start, end = curve.tokens[0], curve.tokens[-1]
    if first_tokens is not None:
        if not start < first_tokens <= end:
            return None
        end = first_tokens
    inside = [(t, loss) for t, loss in zip(curve.tokens, curve.loss, strict=True) if t < end]
    tokens = [t for t, _ in inside] + [end]
    loss = [loss for _, loss in inside] + [float(np.interp(end, curve.tokens, curve.loss))]
    return finite(np.trapezoid(loss, tokens) / (end - start))


def tokens_to_reach(curve: PhaseCurve, threshold: float) -> float | None:
    """Tokens into the phase when the loss first is at or below `threshold`, linear in between.

    0.0 if it already is at the first point; None if it never gets there.
    """
    for k, loss in enumerate(curve.loss):
        if loss <= threshold:
            if k == 0:
                return float(curve.tokens[0])
            above, begin, end = curve.loss[k - 1], curve.tokens[k - 1], curve.tokens[k]
            return finite(begin + (end - begin) * (above - threshold) / (above - loss))
    return None


def tokens_to_half(curve: PhaseCurve) -> float | None:
    """Tokens to half of the phase's own improvement; None if the phase did not improve."""
    begin, end = curve.loss[0], curve.loss[-1]
    if not end < begin:  # catches NaN as well
        return None
    return tokens_to_reach(curve, begin + HALFWAY * (end - begin))


def phase_begin(records: RunRecords, phase: int) -> int | None:
    """Total tokens when the phase began; None if it did not begin."""
    for mark in records.phases:
        if _is(mark, phase, "start") or _is(mark, phase - 1, "end"):
            return mark.tokens
    # A run without phase marks: the first phase begins at 0, others where the last one was scored.
    if phase == 0:
        return 0
    ends = [e.tokens for e in records.evaluations if e.phase == phase - 1 and e.at == "phase_end"]
    return ends[0] if ends else None


def _is(mark: PhaseMark, phase: int, event: str) -> bool:
    return mark.phase == phase and mark.event == event


def _validation(records: RunRecords, phase: int, domain: str, begin: int) -> dict[int, float]:
    """Tokens into the phase -> validation loss; the end of the phase before is its first point."""
    points = {}
    for e in records.evaluations:
        before = e.phase == phase - 1 and e.at in ("start", "phase_end")
        within = e.phase == phase and e.at in ("during", "phase_end")
        if e.domain == domain and (before or within):
            points[e.tokens - begin] = e.inside.loss  # one text for the whole curve
    return points
