"""How much of each domain's training text a plan reads; at most, where a phase may end early."""

from collections.abc import Mapping

import numpy as np

from sparsecl.engine.plan import JOINT, Phase, Plan
from sparsecl.engine.run_config import RunConfig
from sparsecl.metrics.passes import passes, passes_text


def planned_tokens(config: RunConfig, plan: Plan) -> list[dict[str, int]]:
    """For each phase: domain -> tokens, replayed ones included.

    Which sequences are replayed is drawn; each that was seen is equally likely, and counted here is
    the mean.
    """
    new = [_new_tokens(plan, phase) for phase in plan.phases]
    share = 0.0 if config.methods.replay is None else config.methods.replay.share
    planned: list[dict[str, int]] = []
    for index, phase in enumerate(plan.phases):
        tokens = {name: float(count) for name, count in new[index].items()}
        if not share:
            planned.append(dict(new[index]))
            continue
        before = sum(earlier.num_steps for earlier in plan.phases[:index])
        for other, steps in _replayed_steps(plan, index, before, phase.num_steps).items():
            whole = sum(new[other].values())
            for name, count in new[other].items():
                replayed = share * steps * plan.tokens_per_step * count / whole
                tokens[name] = tokens.get(name, 0.0) + replayed
        planned.append({name: round(count) for name, count in tokens.items()})
    return planned


def reading_text(config: RunConfig, plan: Plan, train_tokens: Mapping[str, int]) -> str:
    """Planned passes of every domain, for the header of a run."""
    if not train_tokens:
        return "known when the text is prepared (launch/prepare_data.py)"
    early = config.phases.patience or config.phases.until_loss is not None
    text = passes_text(passes(planned_tokens(config, plan), train_tokens))
    return f"{'at most ' if early else ''}{text} (planned tokens / training tokens of the domain)"


def _new_tokens(plan: Plan, phase: Phase) -> dict[str, int]:
    parts = plan.parts if phase.domain == JOINT else ((phase.domain, phase.num_steps),)
    tokens: dict[str, int] = {}
    for domain, steps in parts:
        name = plan.domains[domain]
        tokens[name] = tokens.get(name, 0) + steps * plan.tokens_per_step
    return tokens


def _replayed_steps(plan: Plan, index: int, before: int, num_steps: int) -> dict[int, float]:
    """Steps' worth of each phase among all that a phase draws from what was seen, at a share of 1.

    Step t of the run (0-based) draws from the t steps before it, so the first draws nothing.
    """
    seen = np.arange(max(before, 1), before + num_steps, dtype=np.float64)
    drawn = {k: float((plan.phases[k].num_steps / seen).sum()) for k in range(index)}
    drawn[index] = float(((seen - before) / seen).sum())
    return drawn
