"""The figures of one run that studies compare: name, unit, direction, meaning."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sparsecl.experiments.study.subject import Subject
from sparsecl.metrics import forgetting
from sparsecl.metrics.forgetting import exposed_rows, finite, last_rows, mean
from sparsecl.metrics.matrix import FloatArray, finished_phases
from sparsecl.metrics.records import RunRecords
from sparsecl.metrics.summary import matrix_of


@dataclass(frozen=True)
class Measure:
    """One figure."""

    unit: str
    better: Literal["lower", "higher"]
    text: str


NATS = "nats per token"

TEXT_MEASURES: dict[str, Measure] = {
    "F_last": Measure(NATS, "lower", "mean rise of the loss since each domain's own training"),
    "F_std": Measure(NATS, "lower", "the same, since the best row from its training on"),
    "F_seed": Measure(NATS, "lower", "since the best row after any phase, all trained domains"),
    "NF": Measure("share", "lower", "share of what was learned that was lost again"),
    "BWT": Measure(NATS, "higher", "effect of later phases on earlier domains, = -F_last"),
    "FWT": Measure(NATS, "higher", "lead of a domain over row 0 just before its own training"),
    "final_loss": Measure(NATS, "lower", "mean loss of all domains at the end"),
    "final_bits_per_byte": Measure("bits per byte", "lower", "the same in bits per byte"),
    "final_accuracy": Measure("share", "higher", "mean next-token accuracy at the end"),
    "KL": Measure(NATS, "lower", "mean KL of the model after each domain's training to the last"),
    "learned_loss": Measure(NATS, "lower", "mean loss of each domain right after its training"),
    "first_loss": Measure(NATS, "lower", "loss of the first domain right after its training"),
    "learning_area": Measure(NATS, "lower", "mean loss over a domain's own phase: learning speed"),
    "seconds": Measure("s", "lower", "wall time of the run"),
    "tokens_per_second": Measure("1/s", "higher", "new training tokens per second"),
}
"""Of a run on text."""

STREAM_MEASURES: dict[str, Measure] = {
    "best_window": Measure("share", "higher", "accuracy in the arm's best window of ten tasks"),
    "last_third": Measure("share", "higher", "accuracy in the last third of the tasks"),
    "lost": Measure("share", "lower", "best_window - last_third"),
    "accuracy": Measure("share", "higher", "accuracy, mean over all tasks"),
    "p": Measure("share", "higher", "p(Z), what an update gains, in the last third of the tasks"),
    "change_erank": Measure(
        "directions", "lower", "effective rank of what a task changes in a layer, in the last third"
    ),
    "dead": Measure("share", "lower", "units that say nothing, at the end"),
    "dormant": Measure("share", "lower", "units that say nothing on 99 % of samples, at the end"),
    "erank": Measure("units", "higher", "effective rank of a hidden layer, at the end"),
    "stable_rank": Measure("units", "higher", "stable rank (Frobenius) of a layer, at the end"),
    "srank99": Measure("units", "higher", "srank 99 % of a layer, at the end"),
    "weight_size": Measure("-", "lower", "mean |w| of the weights that are there, at the end"),
}
"""Of one network of a stream. Accuracy is online, or on held-out images at the end of a task;
"at the end" is after the last one."""

MEASURES = {**TEXT_MEASURES, **STREAM_MEASURES}

BY_SUBJECT: dict[Subject, dict[str, Measure]] = {"text": TEXT_MEASURES, "stream": STREAM_MEASURES}
"""What a study measures of its runs."""


def counted_shares(summary: dict[str, Any]) -> dict[str, float]:
    """Domain -> NF, for the domains that count in this run (metrics/forgetting.py)."""
    matrix = matrix_of(summary)
    shares = forgetting.counted_shares(matrix.loss, matrix.order)
    return {matrix.domains[i]: share for i, share in shares.items()}


def learned_losses(records: RunRecords) -> list[float | None]:
    """Loss of each finished phase's own domain right after it, nats per token, on the text that is
    scored inside phases: what phases.until_loss is compared with."""
    ends = {(e.phase, e.domain): e.inside.loss for e in records.evaluations if e.at == "phase_end"}
    own = [records.domains[index] if index >= 0 else None for index in records.order]
    return [
        None if name is None else finite(ends[phase, name])
        for phase, name in enumerate(own[: finished_phases(records)])
    ]


def measures(summary: dict[str, Any]) -> dict[str, float | None]:
    """Every measure of a run from its summary (metrics/summary.py); None where it is undefined."""
    matrix = matrix_of(summary)
    learned = _diagonal(matrix.loss, matrix.order)
    return {
        **{name: summary["forgetting"][name] for name in ("F_last", "F_std", "F_seed", "NF")},
        "BWT": summary["bwt"],
        "FWT": summary["fwt"],
        "final_loss": _last_row(matrix.loss),
        "final_bits_per_byte": _last_row(matrix.bits_per_byte),
        "final_accuracy": _last_row(matrix.accuracy),
        "KL": _moved(summary, matrix.order),
        "learned_loss": mean(learned),
        "first_loss": _first(matrix.loss, matrix.order),
        "learning_area": summary["learning_speed"]["mean_area"],
        "seconds": summary["seconds"],
        "tokens_per_second": summary["tokens_per_second"],
    }


def _moved(summary: dict[str, Any], order: tuple[int, ...]) -> float | None:
    """Mean over the domains of F_last; None unless it was measured for all of them."""
    found = summary.get("drift")
    if found is None:
        return None
    terms = [found["kl"][-1][i] for i in exposed_rows(order)]
    return None if None in terms else mean(terms)


def _last_row(scores: FloatArray) -> float | None:
    return mean(list(scores[-1])) if len(scores) > 1 else None


def _diagonal(loss: FloatArray, order: tuple[int, ...]) -> list[float]:
    """L[l(i), i] of every trained domain, l(i) = the row after its last phase."""
    return [float(loss[row, i]) for i, row in last_rows(order).items()]


def _first(loss: FloatArray, order: tuple[int, ...]) -> float | None:
    if not order or order[0] < 0:
        return None
    return finite(float(np.asarray(loss)[1, order[0]]))
