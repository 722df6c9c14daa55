"""What each planned contrast of a study can show with its seeds, and how many an effect needs.

The spread between seeds is that of the runs that are done; the hurdle is alpha over the number of
planned contrasts, the first step of Holm's method (metrics/power.py). With --power nothing is run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import Contrast
from sparsecl.experiments.study.measures import MEASURES
from sparsecl.metrics.columns import align
from sparsecl.metrics.power import POWER, detectable, fewest_seeds, seeds_for, upper_sd
from sparsecl.metrics.table import number


@dataclass(frozen=True, kw_only=True)
class ContrastPower:
    """One planned contrast in one measure; all but counts in the measure's unit."""

    arm: str
    against: str
    measure: str
    paired: bool
    num_seeds: int
    """Pairs; of two groups the seeds of the smaller one."""
    sd: float | None
    """Of the differences between seeds; unpaired: within the arms, pooled. None below 2 seeds."""
    alpha: float
    """After division by the planned contrasts."""
    fewest: int
    """Seeds below which nothing can be significant."""
    detectable: float | None
    """Smallest true difference that is found in 80 % of such studies; None with too few seeds."""
    effect: float | None
    """The difference that seeds are counted for."""
    seeds: int | None
    """Seeds that it needs; None without an effect or a spread, or beyond all bounds."""
    seeds_if_wider: int | None
    """The same if the spread is at the upper end of its one-sided 80 % interval."""


def study_power(
    study: Study, contrasts: Sequence[Contrast], effect: float | None = None
) -> list[ContrastPower]:
    """Power of every planned contrast.

    Args:
        contrasts: all of the study (findings/compare.py); exploratory ones are left out.
        effect: true difference, > 0, in the unit of the primary measure. For the other measures,
            and for this one if it is None, the margin of the plan counts.
    """
    margins, primary = study.plan.analysis.margins, study.plan.analysis.metrics[0]
    return [
        contrast_power(
            study,
            one,
            effect if effect and one.measure == primary else margins.get(one.measure),
        )
        for one in contrasts
        if one.family != "exploratory"
    ]


def contrast_power(study: Study, contrast: Contrast, effect: float | None) -> ContrastPower:
    """Power of one planned contrast."""
    test = contrast.test
    alpha, n = test.alpha / test.num_contrasts, test.num_seeds
    sd, freedom = _spread(study, contrast)
    # Without any spread (equal runs, or copies of one) there is nothing to count seeds from.
    seeds = wider = found = None
    if sd:
        found = detectable(sd, n, alpha=alpha, paired=test.paired)
        if effect is not None:
            seeds = seeds_for(effect, sd, alpha=alpha, paired=test.paired)
            wide = upper_sd(sd, freedom)
            wider = seeds_for(effect, wide, alpha=alpha, paired=test.paired)
    return ContrastPower(
        arm=contrast.arm,
        against=contrast.against,
        measure=contrast.measure,
        paired=test.paired,
        num_seeds=n,
        sd=sd,
        alpha=alpha,
        fewest=fewest_seeds(alpha, paired=test.paired),
        detectable=found,
        effect=effect,
        seeds=seeds,
        seeds_if_wider=wider,
    )


def could_have_seen(power: ContrastPower) -> str:
    """A null result in the light of its power, in a sentence."""
    if power.sd == 0:
        return "All seeds differ by the same, so nothing is known of what it could have shown."
    if power.sd is None or power.detectable is None:
        return f"It could have shown nothing: {power.fewest} seeds are needed."
    unit = MEASURES[power.measure].unit
    return (
        f"Such a study finds a true difference of {number(power.detectable, 4)} {unit} in "
        f"{100 * POWER:g} % of cases, and smaller ones less often."
    )


def power_text(study: Study, powers: Sequence[ContrastPower]) -> str:
    """A table for each measure, and what its columns mean."""
    counts = study.counts()
    lines = [f"{study.plan.name}: {counts['done']} of {len(study.results)} runs done"]
    for measure in dict.fromkeys(one.measure for one in powers):
        own = [one for one in powers if one.measure == measure]
        effect = own[0].effect
        asked = "no effect stated" if effect is None else f"effect {effect:g}"
        lines += ["", f"{measure}, {MEASURES[measure].unit}; {asked}", *_table(own)]
    if not powers:
        return "\n".join([*lines, "", "The plan has no contrast."])
    first = powers[0]
    contrasts = round(study.plan.analysis.alpha / first.alpha)
    lines += [
        "",
        "sd: of the differences between seeds (unpaired: within the arms, pooled), of runs done.",
        f"shows: smallest true difference found in {100 * POWER:g} % of studies with the seeds "
        "seen.",
        f"needs: seeds for the effect, as often. Two-sided, alpha {study.plan.analysis.alpha:g} / "
        f"{contrasts} (Holm), t test;",
        "never fewer than a permutation test needs to reject at all.",
        "if wider: seeds if the sd is at the upper end of its one-sided 80 % interval: plan with "
        "it.",
    ]
    return "\n".join(lines)


def _table(powers: Sequence[ContrastPower]) -> list[str]:
    head = ("contrast", "seeds", "sd", "shows", "needs", "if wider")
    rows: list[tuple[str, ...]] = [head]
    for one in powers:
        name = f"{one.arm} minus {one.against}" + ("" if one.paired else " (unpaired)")
        numbers = number(one.sd, 4), number(one.detectable, 4)
        counts = ("-" if n is None else f"{n:,}" for n in (one.seeds, one.seeds_if_wider))
        rows.append((name, str(one.num_seeds), *numbers, *counts))
    return align(rows)


def _spread(study: Study, contrast: Contrast) -> tuple[float | None, int]:
    """Standard deviation behind a contrast and its degrees of freedom; None below 2 seeds."""
    test = contrast.test
    if test.paired:
        return test.sd, max(test.num_seeds - 1, 1)
    sides = study.sides(contrast.arm, contrast.against, contrast.measure, paired=False)
    groups = [np.array(list(side.values())) for side in (sides.first, sides.second)]
    freedom = sum(len(group) - 1 for group in groups)
    if min(map(len, groups)) < 2:
        return None, 1
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    return (squares / freedom) ** 0.5, freedom
