"""The tests of a study: every arm's figures, and every contrast with its correction.

Three families, told apart wherever they are shown:

    primary      the planned contrasts on the first metric of the plan, corrected with Holm
    secondary    the same contrasts on each further metric, Holm for each metric by itself
    exploratory  controls against the arm they belong to, Benjamini-Hochberg for each metric

A contrast is paired by seed if both arms read the same data in the same order
(experiments/study/study_plan.py, `Arm.stream`); else it is compared without pairing, and says so.

A planned family keeps its planned size: a contrast that lost its runs counts with p = 1, so that
losing runs never makes the others easier. Every figure carries the number of seeds behind it and
the number that was planned; a run that is missing or has failed stands in no average.
"""

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparsecl.experiments.findings.collect import Sides, Study
from sparsecl.experiments.study.measures import MEASURES
from sparsecl.experiments.study.study_plan import Arm, ContrastConfig
from sparsecl.metrics.bootstrap import MeanEstimate, estimate_mean
from sparsecl.metrics.multiplicity import benjamini_hochberg, holm
from sparsecl.metrics.significance import (
    ContrastTest,
    Pairs,
    pair,
    paired_test,
    permutation,
    sign_flip,
    unpaired_test,
)

Family = Literal["primary", "secondary", "exploratory"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measure of one arm over its seeds."""

    arm: str
    measure: str
    seeds: tuple[int, ...]
    """Those of the runs that are done and have a value."""
    values: tuple[float, ...]
    planned: int
    """Seeds of the plan."""
    domains: str
    """NF: how many domains count, fewest to most over the seeds; else empty."""
    estimate: MeanEstimate | None
    """None without a value."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Mean over seeds of `arm` minus `against` in one measure."""

    arm: str
    against: str
    measure: str
    family: Family
    planned: int
    """Seeds for which the plan has both arms."""
    pairs: Pairs
    test: ContrastTest
    domains: str
    """NF: how many domains are behind the values, fewest to most; else empty."""
    adjusted: float | None
    """p after correction; None if p is."""
    correction: Literal["Holm", "Benjamini-Hochberg"]
    family_size: int
    """Contrasts that were corrected together."""
    failed_as_worst: float | None
    """p, not corrected, if each failed run counts as the largest difference seen (unpaired: as the
    worst value seen), to the disadvantage of the arm that failed; None if none failed, or p is
    None."""

    @property
    def significant(self) -> bool:
        """The corrected p is at or below alpha."""
        return self.adjusted is not None and self.adjusted <= self.test.alpha

    @property
    def improves(self) -> bool | None:
        """Is the first arm better? None if nothing is known or the means are equal."""
        mean = self.test.mean
        if not mean:
            return None
        return (mean < 0) == (MEASURES[self.measure].better == "lower")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The figures of all arms and all contrasts of a study."""

    figures: dict[tuple[str, str], Figure]
    """(arm, measure) -> figure, for every arm and every measure."""
    contrasts: tuple[Contrast, ...]
    """Primary, secondary, exploratory, each in the order of the plan."""

    def family(self, name: Family) -> list[Contrast]:
        """The contrasts of one family."""
        return [contrast for contrast in self.contrasts if contrast.family == name]


def compare(study: Study) -> Comparison:
    """All figures and tests of a study, as far as it has come. Same records, same result."""
    analysis = study.plan.analysis
    figures = {
        (arm.name, measure): arm_figure(study, arm.name, measure)
        for arm in study.plan.arms
        for measure in study.measures
    }
    contrasts: list[Contrast] = []
    for k, measure in enumerate(analysis.metrics):
        family: Family = "primary" if k == 0 else "secondary"
        contrasts += _family(study, study.plan.contrasts(), measure, family)
    for measure in analysis.metrics:
        controls = [c for c in control_contrasts(study) if _has(study, c, measure)]
        contrasts += _family(study, controls, measure, "exploratory")
    return Comparison(figures=figures, contrasts=tuple(contrasts))


def arm_figure(study: Study, arm: str, measure: str) -> Figure:
    """Mean over seeds with its intervals, of the runs that are done."""
    values = study.values(arm, measure)
    level = 1 - study.plan.analysis.alpha
    numbers = list(values.values())
    return Figure(
        arm=arm,
        measure=measure,
        seeds=tuple(values),
        values=tuple(numbers),
        planned=len(study.plan.seeds_of(arm)),
        domains=_span(
            [len(found) for found in study.shares(arm).values()] if measure == "NF" else []
        ),
        estimate=(
            estimate_mean(numbers, level=level, rng=stream("figure", arm, measure))
            if numbers
            else None
        ),
    )


def control_contrasts(study: Study) -> list[ContrastConfig]:
    """What the controls are for: the arm that one belongs to, minus the control.

    An arm trained for the FLOPs of the reference is compared with the reference instead. A domain
    that is trained alone, or in a probe, has no measure in common with a sequence of them, and
    neither need have a run that finds a ticket.
    """
    contrasts = []
    for arm in study.plan.arms:
        if arm.role == "equal_flops":
            reference = study.plan.reference_of(arm)
            contrasts.append(ContrastConfig(arm=arm.name, against=reference))
        elif arm.of is not None and arm.role not in ("arm", "alone", "link", "probe"):
            contrasts.append(ContrastConfig(arm=arm.of, against=arm.name))
    planned = study.plan.contrasts()
    return [contrast for contrast in contrasts if contrast not in planned]


def stream(*names: str) -> np.random.Generator:
    """Random numbers of one statistic: a report made twice is the same report."""
    return np.random.default_rng(zlib.crc32("/".join(names).encode()))


def sequential(arms: tuple[Arm, ...]) -> list[Arm]:
    """The arms that learn the domains one after the other."""
    return [arm for arm in arms if arm.role not in ("joint", "alone", "link", "probe")]


def unprobed(arms: tuple[Arm, ...]) -> list[Arm]:
    """All but probes, which have tables and a figure of their own."""
    return [arm for arm in arms if arm.role != "probe"]


def _family(
    study: Study,
    contrasts: tuple[ContrastConfig, ...] | list[ContrastConfig],
    measure: str,
    family: Family,
) -> list[Contrast]:
    """Test every contrast on one measure, then correct over them."""
    analysis = study.plan.analysis
    tested = []
    for contrast in contrasts:
        paired = study.plan.paired(contrast)
        sides = study.sides(contrast.arm, contrast.against, measure, paired=paired)
        pairs = pair(sides.first, sides.second)
        groups = list(sides.first.values()), list(sides.second.values())
        options = {
            "alpha": analysis.alpha,
            "margin": analysis.margins.get(measure),
            # Which contrast is the first of Holm's steps is not known beforehand; BH has another
            # hurdle, and exploration needs no plan of its power.
            "num_contrasts": 1 if family == "exploratory" else len(contrasts),
            "rng": stream(family, contrast.arm, contrast.against, measure),
        }
        test = (
            paired_test(pairs.differences, **options)
            if paired
            else unpaired_test(*groups, **options)
        )
        tested.append((contrast, sides, pairs, test))
    p_values = [test.p for *_, test in tested]
    if family == "exploratory":
        adjusted, size = benjamini_hochberg(p_values), sum(p is not None for p in p_values)
    else:
        whole = holm([1.0 if p is None else p for p in p_values])
        adjusted = [None if p is None else q for p, q in zip(p_values, whole, strict=True)]
        size = len(contrasts)
    return [
        Contrast(
            arm=contrast.arm,
            against=contrast.against,
            measure=measure,
            family=family,
            planned=_planned_pairs(study, contrast),
            pairs=pairs,
            test=test,
            domains=_span(sides.domains),
            adjusted=corrected,
            correction="Benjamini-Hochberg" if family == "exploratory" else "Holm",
            family_size=size,
            failed_as_worst=None
            if test.p is None
            else _failed_as_worst(study, contrast, measure, sides, pairs if test.paired else None),
        )
        for (contrast, sides, pairs, test), corrected in zip(tested, adjusted, strict=True)
    ]


def _failed_as_worst(
    study: Study, contrast: ContrastConfig, measure: str, sides: Sides, pairs: Pairs | None
) -> float | None:
    """p that also counts the seeds where one of the two runs failed and one is done.

    Leaving such seeds out flatters an arm that fails where it would have been bad; this is the
    opposite assumption. A pair where both failed says nothing.
    """
    status = {
        (arm, seed): status
        for arm in (contrast.arm, contrast.against)
        for seed, status in study.statuses(arm).items()
    }
    names = ("worst", contrast.arm, contrast.against, measure)
    lower = MEASURES[measure].better == "lower"
    if pairs is None:
        groups = [list(side.values()) for side in (sides.first, sides.second)]
        last = max(map(max, groups)) if lower else min(map(min, groups))
        lost = [
            [last] * sum(status.get((arm, seed)) == "failed" for seed in study.plan.seeds)
            for arm in (contrast.arm, contrast.against)
        ]
        with_lost = [[*one, *more] for one, more in zip(groups, lost, strict=True)]
        return permutation(*with_lost, rng=stream(*names)) if any(lost) else None
    worst = max(map(abs, pairs.differences)) * (1 if lower else -1)
    added = []
    for seed in study.plan.seeds:
        found = status.get((contrast.arm, seed)), status.get((contrast.against, seed))
        if found in (("failed", "done"), ("done", "failed")):
            added.append(worst if found[0] == "failed" else -worst)
    return sign_flip([*pairs.differences, *added], rng=stream(*names)) if added else None


def _has(study: Study, contrast: ContrastConfig, measure: str) -> bool:
    """False if an arm has finished runs and none of them has the measure: all domains learned at
    once leave nothing to forget. An arm without finished runs is not judged yet."""
    arms = (contrast.arm, contrast.against)
    return all(study.values(arm, measure) or not study.done(arm) for arm in arms)


def _span(counts: list[int]) -> str:
    few, many = min(counts, default=0), max(counts, default=0)
    return "" if not many else str(few) if few == many else f"{few} to {many}"


def _planned_pairs(study: Study, contrast: ContrastConfig) -> int:
    first = set(study.plan.seeds_of(contrast.arm))
    return len(first & set(study.plan.seeds_of(contrast.against)))
