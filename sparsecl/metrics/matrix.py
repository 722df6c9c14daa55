"""The result matrix: every domain scored before training and after each phase.

Row 0 is the untrained model; row p + 1 is the model after phase p. Every row holds every domain,
trained or not: transfer needs the scores from before, forgetting the scores from after.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsecl.metrics.records import Evaluation, RunRecords

FloatArray = NDArray[np.float64]

OTHER_DOMAIN = -1
"""In `order`: a phase that trained a domain which is not among the columns, or all at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultMatrix:
    """Scores [P + 1, D] after P finished phases, on D domains. NaN = not measured.

    Raises:
        ValueError: if the shapes disagree or `order` names a column that is not there.
    """

    domains: tuple[str, ...]
    order: tuple[int, ...]
    """Column trained in each finished phase, length P."""
    loss: FloatArray
    """Nats per token; lower is better."""
    bits_per_byte: FloatArray
    """Lower is better; comparable across tokenizers."""
    accuracy: FloatArray
    """Share of next tokens predicted, in [0, 1]; higher is better."""

    def __post_init__(self) -> None:
        shape = (len(self.order) + 1, len(self.domains))
        for name in ("loss", "bits_per_byte", "accuracy"):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"{name} must be [phases + 1, domains] = {shape}, got {found}")
        if any(not OTHER_DOMAIN <= index < len(self.domains) for index in self.order):
            raise ValueError(f"order must index the {len(self.domains)} domains, got {self.order}")

    @property
    def num_phases(self) -> int:
        """Finished phases, P."""
        return len(self.order)

    def trained(self, phase: int) -> str:
        """Name of the domain that a phase trained; "(mixed)" if it has no column of its own."""
        index = self.order[phase]
        return "(mixed)" if index == OTHER_DOMAIN else self.domains[index]

    @property
    def perplexity(self) -> FloatArray:
        """exp(loss) per cell: report it, but never average or subtract it across domains."""
        with np.errstate(over="ignore"):
            return np.exp(self.loss)

    @classmethod
    def from_arrays(
        cls,
        domains: Sequence[str],
        order: Sequence[int],
        loss: ArrayLike,
        bits_per_byte: ArrayLike | None = None,
        accuracy: ArrayLike | None = None,
    ) -> "ResultMatrix":
        """Build from anything numpy can read; scores left out become NaN."""
        loss = np.asarray(loss, dtype=np.float64)
        missing = np.full(loss.shape, np.nan)
        return cls(
            domains=tuple(domains),
            order=tuple(order),
            loss=loss,
            bits_per_byte=missing if bits_per_byte is None else _floats(bits_per_byte),
            accuracy=missing if accuracy is None else _floats(accuracy),
        )

    @classmethod
    def from_records(cls, records: RunRecords) -> "ResultMatrix":
        """Collect the complete rows of a run, which may have stopped in any phase.

        A phase counts as finished when all domains were scored after it and after all earlier
        phases. Row 0 may have gaps; they stay NaN.
        """
        rows = _rows(records)
        finished = finished_phases(records)
        kept = [rows.get(row, {}) for row in range(finished + 1)]

        def table(score: str) -> FloatArray:
            return _floats(
                [
                    [getattr(row.get(name), score, math.nan) for name in records.domains]
                    for row in kept
                ]
            )

        return cls(
            domains=records.domains,
            order=records.order[:finished],
            loss=table("loss"),
            bits_per_byte=table("bits_per_byte"),
            accuracy=table("accuracy"),
        )

    def select(self, domains: Sequence[str]) -> "ResultMatrix":
        """The same phases seen through fewer columns, in the order asked for.

        Phases that trained a dropped domain stay as rows: they are what causes forgetting.

        Raises:
            ValueError: if a domain is not in the matrix.
        """
        columns = [self.domains.index(name) for name in domains]
        place = {column: new for new, column in enumerate(columns)}
        return ResultMatrix(
            domains=tuple(domains),
            order=tuple(place.get(index, OTHER_DOMAIN) for index in self.order),
            loss=self.loss[:, columns],
            bits_per_byte=self.bits_per_byte[:, columns],
            accuracy=self.accuracy[:, columns],
        )


def finished_phases(records: RunRecords) -> int:
    """Number of phases after which all domains were scored, up to the first gap."""
    rows = _rows(records)
    for phase in range(len(records.order)):
        if len(rows.get(phase + 1, {})) < len(records.domains):
            return phase
    return len(records.order)


def _rows(records: RunRecords) -> dict[int, dict[str, Evaluation]]:
    """row -> domain -> evaluation, only for evaluations that belong to the matrix."""
    rows: dict[int, dict[str, Evaluation]] = {}
    for evaluation in records.evaluations:
        if evaluation.at in ("start", "phase_end"):
            rows.setdefault(evaluation.phase + 1, {})[evaluation.domain] = evaluation
    return rows


def _floats(values: ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)
