"""All figures of one run in one JSON-safe dict: the content of results.json.

The engine writes what `summarize` returns, and offline tools call the same function on the same
scalars.jsonl, so that a recomputed figure equals the stored one to the last bit.
"""

import math
from dataclasses import asdict, replace
from typing import Any

from sparsecl.errors import DataError
from sparsecl.metrics import forgetting, speed, transfer
from sparsecl.metrics.matrix import FloatArray, ResultMatrix
from sparsecl.metrics.plasticity import plasticity_rows
from sparsecl.metrics.reading import planned_often, reading
from sparsecl.metrics.records import RunRecords

SCORES = ("loss", "bits_per_byte", "accuracy")


def summarize(records: RunRecords) -> dict[str, Any]:
    """Compute everything; a value that is undefined or not finite is None.

    `order` is that of all planned phases; `phases.finished` says how many of them the matrix has.
    All figures are those of a run that ends with the last finished phase.

    Raises:
        DataError: if the run has no evaluation of the matrix at all.
    """
    matrix = ResultMatrix.from_records(records)
    if not any(e.at in ("start", "phase_end") for e in records.evaluations):
        raise DataError(f"{records.name}: no evaluations yet, so there is nothing to compute")
    header = records.header
    return json_safe(
        {
            "name": records.name,
            "records": asdict(records.extent),
            "domains": list(records.domains),
            "order": list(records.order),
            "phases": {"finished": matrix.num_phases, "planned": len(records.order)},
            "matrix": _scores(matrix),
            **_with_identity(records),
            "forgetting": {
                **forgetting_figures(matrix.loss, matrix.order),
                "per_domain": _by_name(matrix, forgetting.per_domain(matrix.loss, matrix.order)),
                "NF_per_domain": _by_name(matrix, forgetting.normalised(matrix.loss, matrix.order)),
                "NF_domains": {
                    "counted": len(forgetting.counted_shares(matrix.loss, matrix.order)),
                    "of": len(forgetting.exposed_rows(matrix.order)),
                },
            },
            # The same definitions on bits per byte, for runs whose tokenizers differ.
            "forgetting_bits_per_byte": {
                name: value
                for name, value in forgetting_figures(matrix.bits_per_byte, matrix.order).items()
                if name != "NF"  # its guard is a number of nats per token
            },
            "scored": _scored(records),
            "trained": _trained(records, matrix.num_phases),
            "reading": reading(records, matrix.num_phases),
            "bwt": transfer.bwt(matrix.loss, matrix.order),
            "fwt": transfer.fwt(matrix.loss, matrix.order),
            "averages": {name: _averages(getattr(matrix, name), matrix) for name in SCORES},
            "learning_speed": _learning_speed(records),
            "plasticity": plasticity_rows(records),
            "drift": _drift(records, matrix.num_phases),
            "audit": {
                "checks": records.audit_checks,
                "nonzero": records.audit_nonzero,
                "held": records.audit_held,
            },
            "entropy_rate": header.get("entropy_rate", {}),
            "overlap": header.get("overlap", {}),
            "density": header.get("density", {}),
            **_final_density(records, matrix.num_phases),
            "parameters": header.get("parameters", {}),
            **({"flops": header["flops"]} if "flops" in header else {}),
            "digests": header.get("digests", {}),
            "versions": header.get("versions", {}),
            "config": header.get("config", {}),
            "methods": _methods(records, matrix.num_phases),
            "replayed_tokens": _replayed_tokens(records, matrix.num_phases),
            "tokens_per_second": records.tokens_per_second,
            "seconds": records.seconds,
            "performance": records.performance,
            "warnings": [*records.warnings, *_gaps(records, matrix), *planned_often(records)],
        }
    )


def _scores(matrix: ResultMatrix) -> dict[str, Any]:
    return {name: getattr(matrix, name).tolist() for name in (*SCORES, "perplexity")}


def _with_identity(records: RunRecords) -> dict[str, Any]:
    """The matrix and its forgetting where methods are told the domain (flag I); nothing where none
    is. Every other figure is of the matrix without it."""
    if not records.with_identity:
        return {}
    told = ResultMatrix.from_records(replace(records, evaluations=records.with_identity))
    return {
        "matrix_with_identity": _scores(told),
        "forgetting_with_identity": forgetting_figures(told.loss, told.order),
    }


def forgetting_figures(loss: FloatArray, order: tuple[int, ...]) -> dict[str, float | None]:
    """Every averaged definition by its name; lower is better."""
    return {
        "F_last": forgetting.f_last(loss, order),
        "F_std": forgetting.f_std(loss, order),
        "F_seed": forgetting.f_seed(loss, order),
        "NF": forgetting.mean_normalised(loss, order),
    }


def matrix_of(summary: dict[str, Any], key: str = "matrix") -> ResultMatrix:
    """The result matrix inside a summary, or inside a results.json; None becomes NaN."""
    loss = summary[key]["loss"]
    return ResultMatrix.from_arrays(
        summary["domains"],
        summary["order"][: len(loss) - 1],
        *(summary[key][name] for name in SCORES),
    )


def json_safe(value: Any) -> Any:
    """Copy `value` with None for every float that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _by_name(matrix: ResultMatrix, values: list[float | None]) -> dict[str, float | None]:
    return dict(zip(matrix.domains, values, strict=True))


def _averages(scores: FloatArray, matrix: ResultMatrix) -> dict[str, Any]:
    """`final`: last row over trained domains (ACC); `seen`, `all`: one value for each row."""
    return {
        "final": transfer.acc(scores, matrix.order),
        "seen": transfer.average_seen(scores, matrix.order),
        "all": transfer.average_all(scores, matrix.order),
    }


def _scored(records: RunRecords) -> dict[str, dict[str, Any]]:
    """How much text is behind each domain's scores in the matrix: tokens, bytes, documents and
    windows; the same of scores `inside` phases, and of `all` the validation text.
    Runs of earlier versions have tokens and bytes only."""
    stated = records.header.get("scored", {})
    found = {}
    for e in records.evaluations:
        if e.at in ("start", "phase_end"):
            texts = stated.get(e.domain)
            more = (
                {**texts["ends"], "inside": texts["inside"], "all": texts["all"]} if texts else {}
            )
            found[e.domain] = {**more, "tokens": e.num_tokens, "bytes": e.num_bytes}
    return found


def _trained(records: RunRecords, num_phases: int) -> dict[str, int]:
    """Optimizer steps and new tokens up to the end of the last finished phase."""
    ends = [e for e in records.evaluations if e.at == "phase_end" and e.phase < num_phases]
    return {
        "steps": max((e.step for e in ends), default=0),
        "tokens": max((e.tokens for e in ends), default=0),
    }


def _drift(records: RunRecords, num_phases: int) -> dict[str, Any] | None:
    """KL[j, i] from the model right after the last phase of domain i before j to that after phase
    j, nats per token, and its standard error, [finished phases][domains]. None where i was not
    trained before or is trained in j itself; and as a whole if it was not measured."""
    found = {point.phase: point for point in records.drift if point.phase < num_phases}
    if not found:
        return None
    rows = [found.get(phase) for phase in range(num_phases)]

    def table(key: str) -> list[list[float | None]]:
        return [[getattr(row, key, {}).get(name) for name in records.domains] for row in rows]

    return {"kl": table("kl"), "standard_error": table("standard_error")}


def _learning_speed(records: RunRecords) -> dict[str, Any]:
    phases = [
        {
            "phase": curve.phase,
            "domain": curve.domain,
            "source": curve.source,
            "tokens": curve.tokens[-1],
            "first_loss": curve.loss[0],
            "last_loss": curve.loss[-1],
            "area": speed.area(curve),
            "tokens_to_half": speed.tokens_to_half(curve),
        }
        for curve in speed.phase_curves(records)
    ]
    areas = [phase["area"] for phase in phases]
    known = len(areas) > 0 and None not in areas
    return {"mean_area": forgetting.mean(areas) if known else None, "phases": phases}


def _replayed_tokens(records: RunRecords, num_phases: int) -> int | None:
    """Tokens trained again in the finished phases, beside the new ones; None without replay.

    Known as of the last logged step of these phases: the last one of a phase always is logged,
    unless the phase ended early.
    """
    counts = [
        point.replayed_tokens
        for point in records.train
        if point.phase < num_phases and point.replayed_tokens is not None
    ]
    return max(counts, default=None)


def _final_density(records: RunRecords, num_phases: int) -> dict[str, Any]:
    """`density` after the last finished phase; nothing where no method moves live weights."""
    ends = [m for m in records.phases if m.event == "end" and m.phase < num_phases]
    last = max(ends, key=lambda mark: mark.phase, default=None)
    total = records.header.get("parameters", {}).get("total")
    if last is None or last.live is None or not total:
        return {}
    model = (last.live + total - last.cells) / total
    found: dict[str, Any] = {"final_density": {"masked": last.live / last.cells, "model": model}}
    if last.lifetime is not None:
        by_phase = sorted(ends, key=lambda mark: mark.phase)
        found["turnover"] = {
            "came": [mark.came for mark in by_phase],
            "lifetime": last.lifetime,
            "ever": last.ever,
        }
    return found


def _methods(records: RunRecords, num_phases: int) -> dict[str, dict[str, Any]]:
    """Every method of the run, by name; its tokens are counted as in `_replayed_tokens`.
    `phase_ends`: what it measured of itself at the end of each finished phase, if it does."""
    counts: dict[str, int] = {}
    for point in records.train:
        if point.phase < num_phases:
            for name, count in point.replayed_by_method.items():
                counts[name] = max(count, counts.get(name, 0))
    ends = {mark.phase: mark.methods for mark in records.phases if mark.event == "end"}
    measured = [ends.get(phase, {}) for phase in range(num_phases)]
    return {
        name: {
            "flags": method["flags"],
            "extra_parameters": method["extra_parameters"],
            "replayed_tokens": counts.get(name, 0),
            **(
                {"phase_ends": [found.get(name, {}) for found in measured]}
                if any(name in found for found in measured)
                else {}
            ),
        }
        for name, method in records.header.get("methods", {}).items()
    }


def _gaps(records: RunRecords, matrix: ResultMatrix) -> list[str]:
    """What is missing from the matrix, in words."""
    finished, planned = matrix.num_phases, len(records.order)
    notes = []
    if finished < planned:
        later = any(e.at == "phase_end" and e.phase >= finished for e in records.evaluations)
        gap = f"; not all domains were scored after phase {finished}" if later else ""
        notes.append(f"partial run: {finished} of {planned} phases are finished{gap}")
    scored = {e.domain for e in records.evaluations if e.at == "start"}
    if len(scored) < len(records.domains):
        notes.append("row 0 (before training) was not fully measured; FWT and NF need it")
    if any(not math.isfinite(e.loss_sum) for e in records.evaluations):
        notes.append("some losses are not finite: the run diverged; figures that need them are -")
    return notes
