"""Writes a plausible scalars.jsonl without training: losses fall in a domain's own phase."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DOMAINS = ("code", "math", "manual", "legal", "dialogue")
STEPS = 100
TOKENS_PER_STEP = 4096
NUM_TOKENS, NUM_BYTES = 20_000, 71_000


def write_run(
    folder: Path,
    *,
    name: str = "demo",
    domains: Sequence[str] = DOMAINS,
    order: Sequence[int] | None = None,
    forgetting: float = 0.25,
    seed: int = 0,
    density: float = 0.1,
    every: int = 20,
) -> Path:
    """Write folder/scalars.jsonl of a finished run; returns the folder.

    Args:
        forgetting: share of the distance to the start that a domain loses in each later phase.
        every: steps between "during" evaluations; 0 = none.
    """
    order = list(range(len(domains))) if order is None else list(order)
    records = run_records(name, domains, order, forgetting, seed, density, every)
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "scalars.jsonl", records)
    return folder


def write_lines(file: Path, records: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def header(domains: Sequence[str], order: Sequence[int], **changes: Any) -> dict[str, Any]:
    record = {
        "kind": "run",
        "name": "demo",
        "domains": list(domains),
        "order": list(order),
        "density": {"masked": 0.1, "model": 0.23},
        "parameters": {"live": 1_234_567, "total": 5_000_000},
        "versions": {"torch": "2.13.0"},
        "digests": {"topology": "7f3a"},
        "config": {"name": "demo", "seed": 0, "topology": {"kind": "er_fixed", "density": 0.1}},
    }
    return {**record, **changes}


def evaluation(
    domain: str, loss: float, *, phase: int, at: str, step: int, tokens: int = 0
) -> dict[str, Any]:
    return {
        "kind": "eval",
        "phase": phase,
        "at": at,
        "step": step,
        "tokens": tokens,
        "domain": domain,
        "loss_sum": loss * NUM_TOKENS,
        "num_tokens": NUM_TOKENS,
        "num_bytes": NUM_BYTES,
        "num_correct": round(NUM_TOKENS * math.exp(-max(loss, 0.0))) if math.isfinite(loss) else 0,
        "seconds": 1.5,
    }


def from_matrix(
    loss: Sequence[Sequence[float]], domains: Sequence[str], order: Sequence[int]
) -> list[dict[str, Any]]:
    """The records of a run with exactly this loss matrix: row 0, then one row a phase."""
    records = [header(domains, order)]
    for row, values in enumerate(loss):
        at = "phase_end" if row else "start"
        for domain, value in zip(domains, values, strict=True):
            step, tokens = row * STEPS, row * STEPS * TOKENS_PER_STEP
            records.append(
                evaluation(domain, value, phase=row - 1, at=at, step=step, tokens=tokens)
            )
    return records


def run_records(
    name: str,
    domains: Sequence[str],
    order: Sequence[int],
    forgetting: float,
    seed: int,
    density: float,
    every: int,
) -> list[dict[str, Any]]:
    import numpy as np  # on use: a process that only wants from_matrix is light without it

    rng = np.random.default_rng(seed)
    begin = 8.3 + rng.normal(0, 0.05, len(domains))
    floor = rng.uniform(2.2, 3.6, len(domains))
    loss = begin.copy()
    records = [header(domains, order, name=name, density={"masked": density, "model": 0.23})]

    def score(phase: int, at: str, step: int) -> None:
        for i, domain in enumerate(domains):
            value = float(loss[i] + rng.normal(0, 0.01))
            tokens = step * TOKENS_PER_STEP
            records.append(evaluation(domain, value, phase=phase, at=at, step=step, tokens=tokens))

    def mark(phase: int, event: str, step: int) -> None:
        tokens = step * TOKENS_PER_STEP
        domain = domains[order[phase]]
        records.append(
            {
                "kind": "phase",
                "phase": phase,
                "domain": domain,
                "event": event,
                "step": step,
                "tokens": tokens,
            }
        )

    score(-1, "start", 0)
    for phase, trained in enumerate(order):
        mark(phase, "start", phase * STEPS)
        entry = loss.copy()
        for k in range(1, STEPS + 1):
            step = phase * STEPS + k
            for i in range(len(domains)):
                # The trained domain nears its floor fast; the others drift: first a gain from
                # whatever is shared between domains, and loss of what they had learned.
                rate = 1 - math.exp(-5 * k / STEPS)
                shared = floor[i] + 0.6 * (begin[i] - floor[i])
                goal = floor[i] if i == trained else max(shared, entry[i]) if phase else shared
                pull = 1.0 if i == trained else (forgetting if phase else 0.8)
                loss[i] = entry[i] + pull * rate * (goal - entry[i])
                if i != trained and loss[i] < shared:
                    loss[i] += forgetting * rate * 0.5 * (shared - loss[i])
            if k % 5 == 0:
                records.append(
                    {
                        "kind": "train",
                        "phase": phase,
                        "step": step,
                        "tokens": step * TOKENS_PER_STEP,
                        "loss": float(loss[trained] + rng.normal(0, 0.05)),
                        "lr": 3e-4,
                        "grad_norm": 0.8,
                        "tokens_per_second": 9000.0,
                        "seconds": 0.4,
                    }
                )
            if every and k % every == 0 and k < STEPS:
                score(phase, "during", step)
        score(phase, "phase_end", (phase + 1) * STEPS)
        mark(phase, "end", (phase + 1) * STEPS)
        records.append(
            {"kind": "audit", "step": (phase + 1) * STEPS, "checks": 12 * (phase + 1), "nonzero": 0}
        )
    records.append({"kind": "end", "seconds": 321.5, "tokens_per_second": 9123.4})
    return records


def with_identity(records: Sequence[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """After each score the same one, `factor` times the loss, where methods are told the domain."""
    made = []
    for record in records:
        made.append(record)
        if record["kind"] == "eval":
            told = {"kind": "eval_with_identity", "loss_sum": factor * record["loss_sum"]}
            made.append({**record, **told})
    return made
