"""Does an answer hang on the order of the domains? Contrasts within each order, and over all.

A study of several orders runs each seed in each of them, and its tests stand on the mean over the
orders: seeds are what is drawn, orders are what was chosen. Here the same differences are shown in
each order by itself, and over all with orders drawn as well: seeds are resampled, then the orders
of each (metrics/bootstrap.py, `hierarchical_means`). Few orders know little of all orders.
"""

from dataclasses import dataclass

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import stream
from sparsecl.experiments.study.study_plan import ContrastConfig
from sparsecl.metrics.bootstrap import (
    MIN_SEEDS,
    Interval,
    hierarchical_means,
    percentile_interval,
    t_interval,
)


@dataclass(frozen=True, kw_only=True)
class OrderEffect:
    """Mean over seeds of one arm minus another, in one order or in all."""

    arm: str
    against: str
    measure: str
    order: str
    """Empty: over all."""
    differences: tuple[float, ...]
    """One for each seed."""
    mean: float | None
    """None without a pair of runs."""
    interval: Interval | None
    """Student's t in one order; over all the hierarchical bootstrap. None below MIN_SEEDS."""


def order_effects(study: Study) -> list[OrderEffect]:
    """Every planned contrast of pairs in every metric of the plan; none if there is one order."""
    plan = study.plan
    if not plan.orders:
        return []
    pairs = [contrast for contrast in plan.contrasts() if plan.paired(contrast)]
    return [
        effect
        for measure in plan.analysis.metrics
        for contrast in pairs
        for effect in _effects(study, contrast, measure)
    ]


def _effects(study: Study, contrast: ContrastConfig, measure: str) -> list[OrderEffect]:
    level = 1 - study.plan.analysis.alpha
    by_order = {order: _differences(study, contrast, measure, order) for order in study.plan.orders}
    made = []
    for order, found in by_order.items():
        enough = len(found) >= MIN_SEEDS
        interval = t_interval(list(found.values()), level) if enough else None
        made.append(_effect(contrast, measure, order, found, interval))
    rows = {
        seed: [found[seed] for found in by_order.values()]
        for seed in study.plan.seeds
        if all(seed in found for found in by_order.values())
    }
    whole = {seed: sum(row) / len(row) for seed, row in rows.items()}
    interval = None
    if len(rows) >= MIN_SEEDS:
        rng = stream("orders", contrast.arm, contrast.against, measure)
        means = hierarchical_means(list(rows.values()), rng=rng)
        interval = percentile_interval(means, level, "hierarchical")
    return [*made, _effect(contrast, measure, "", whole, interval)]


def _differences(
    study: Study, contrast: ContrastConfig, measure: str, order: str
) -> dict[int, float]:
    first, second = (study.values(arm, measure, order) for arm in (contrast.arm, contrast.against))
    return {seed: first[seed] - second[seed] for seed in first if seed in second}


def _effect(
    contrast: ContrastConfig,
    measure: str,
    order: str,
    found: dict[int, float],
    interval: Interval | None,
) -> OrderEffect:
    return OrderEffect(
        arm=contrast.arm,
        against=contrast.against,
        measure=measure,
        order=order,
        differences=tuple(found.values()),
        mean=sum(found.values()) / len(found) if found else None,
        interval=interval,
    )
