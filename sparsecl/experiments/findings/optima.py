"""The best density at every size of a study, for every measure of its analysis.

Beside the sparse arms of one kind, the reference counts if it is dense: as density 1.
"""

from dataclasses import dataclass

import numpy as np

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import stream
from sparsecl.experiments.study.measures import MEASURES
from sparsecl.experiments.study.study_plan import Arm
from sparsecl.metrics.matrix import FloatArray
from sparsecl.metrics.optimum import Optimum, OptimumSlope, optimal_density, optimum_slope

NOT_A_SETTING = ("topology.density:", "topology.kind:", "name:")
"""Differences that arms of one density trend may have: its axis, what groups it already, a name."""


@dataclass(frozen=True, kw_only=True)
class SizeOptimum:
    """The best density of one size in one measure."""

    size: str
    parameters: int
    """Of the dense model."""
    arms: tuple[str, ...]
    """By density, rising."""
    optimum: Optimum | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class SizeTrend:
    """The optima of all sizes in one measure."""

    measure: str
    kind: str
    """topology.kind of the sparse arms."""
    optima: tuple[SizeOptimum, ...]
    slope: OptimumSlope | None
    why: str = ""


def size_trends(study: Study) -> list[SizeTrend]:
    """For each kind of topology with arms at several sizes, and each measure of the analysis."""
    kinds: dict[str, dict[str, list[Arm]]] = {}
    for arm in study.plan.arms:
        if arm.size is not None and _belongs(study, arm):
            kinds.setdefault(arm.kind, {}).setdefault(arm.size, []).append(arm)
    dense = {arm.size: arm for arm in study.plan.arms if study.plan.is_reference(arm)}
    found = []
    for kind, sizes in kinds.items():
        if kind == "dense" or len(sizes) < 2:
            continue
        for size, arms in sizes.items():
            reference = dense.get(size)
            if reference is not None and reference.kind == "dense":
                arms.append(reference)
            arms.sort(key=lambda arm: arm.density)
        found += [_trend(study, kind, sizes, name) for name in study.plan.analysis.metrics]
    return found


def _belongs(study: Study, arm: Arm) -> bool:
    """An arm as stated that differs from the reference of its size in density alone."""
    other = [line for line in arm.differences if not line.startswith(NOT_A_SETTING)]
    return arm.role == "arm" and arm.kind != "dense" and not other


def _trend(study: Study, kind: str, sizes: dict[str, list[Arm]], measure: str) -> SizeTrend:
    level, better = 1 - study.plan.analysis.alpha, MEASURES[measure].better
    tables = {size: _values(study, arms, measure) for size, arms in sizes.items()}
    densities = {size: [arm.density for arm in arms] for size, arms in sizes.items()}
    optima = []
    for size, arms in sizes.items():
        found, why = None, ""
        try:
            names = ("optimum", kind, size, measure)
            found = optimal_density(
                densities[size], tables[size], better=better, level=level, rng=stream(*names)
            )
        except ValueError as error:
            why = str(error)
        optima.append(
            SizeOptimum(
                size=size,
                parameters=arms[0].total,
                arms=tuple(arm.name for arm in arms),
                optimum=found,
                why=why,
            )
        )
    slope, why = None, ""
    try:
        slope = optimum_slope(
            [item.parameters for item in optima],
            [(densities[size], tables[size]) for size in sizes],
            better=better,
            level=level,
        )
    except ValueError as error:
        why = str(error)
    return SizeTrend(measure=measure, kind=kind, optima=tuple(optima), slope=slope, why=why)


def _values(study: Study, arms: list[Arm], measure: str) -> FloatArray:
    """[S, D] over the seeds of the plan; NaN = no value."""
    found = [study.values(arm.name, measure) for arm in arms]
    return np.array([[one.get(seed, np.nan) for one in found] for seed in study.plan.seeds])
