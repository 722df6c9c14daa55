"""How much of each domain's training text a run reads; at most, where a phase may end early."""

from collections.abc import Mapping

import numpy as np

from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import JOINT, Phase, Schedule
from sparsecl.metrics.passes import passes, passes_text


def planned_tokens(config: RunConfig, schedule: Schedule) -> list[dict[str, int]]:
    """For each phase: domain -> tokens, replayed ones included.

    Which sequences are replayed is drawn; each that was seen is equally likely, and counted here is
    the mean.
    """
    new = [_new_tokens(schedule, phase) for phase in schedule.phases]
    share = config.methods.reread_share
    planned: list[dict[str, int]] = []
    for index, phase in enumerate(schedule.phases):
        tokens = {name: float(count) for name, count in new[index].items()}
        if not share:
            planned.append(dict(new[index]))
            continue
        before = sum(earlier.num_steps for earlier in schedule.phases[:index])
        for other, steps in _replayed_steps(schedule, index, before, phase.num_steps).items():
            whole = sum(new[other].values())
            for name, count in new[other].items():
                replayed = share * steps * schedule.tokens_per_step * count / whole
                tokens[name] = tokens.get(name, 0.0) + replayed
        planned.append({name: round(count) for name, count in tokens.items()})
    return planned


def reading_text(config: RunConfig, schedule: Schedule, train_tokens: Mapping[str, int]) -> str:
    """Planned passes of every domain, for the header of a run."""
    if not train_tokens:
        return "known when the text is prepared (launch/prepare_data.py)"
    early = config.phases.patience or config.phases.until_loss is not None
    text = passes_text(passes(planned_tokens(config, schedule), train_tokens))
    return f"{'at most ' if early else ''}{text} (planned tokens / training tokens of the domain)"


def _new_tokens(schedule: Schedule, phase: Phase) -> dict[str, int]:
    parts = schedule.parts if phase.domain == JOINT else ((phase.domain, phase.num_steps),)
    tokens: dict[str, int] = {}
    for domain, steps in parts:
        name = schedule.domains[domain]
        tokens[name] = tokens.get(name, 0) + steps * schedule.tokens_per_step
    return tokens


def _replayed_steps(
    schedule: Schedule, index: int, before: int, num_steps: int
) -> dict[int, float]:
    """Steps' worth of each phase among all that a phase draws from what was seen, at a share of 1.

    Step t of the run (0-based) draws from the t steps before it, so the first draws nothing.
    """
    seen = np.arange(max(before, 1), before + num_steps, dtype=np.float64)
    drawn = {k: float((schedule.phases[k].num_steps / seen).sum()) for k in range(index)}
    drawn[index] = float(((seen - before) / seen).sum())
    return drawn
