"""Learning against forgetting over learning rates, where a study has tried several.

Arms that differ in optimizer.lr and in nothing else are one family; two rates or more make its
frontier (metrics/frontier.py). In a study that is tuned over the rate these are the trials of each
arm, on the seeds and in the order of the tuning; of other tuned keys they have the values that were
taken. Each family is compared with that of the reference:

    equal loss    F_last at equal learned loss: what is left when the rate is taken out
    best rates    F_last, learned loss and final loss, each family at the rate of its lowest mean
                  final loss. Chosen on the seeds that are compared, so it flatters both. Not made
                  of trials: the test is that comparison, on seeds that chose nothing
    equal KL      F_last at equal movement of the model (metrics/drift.py), if it was measured: an
                  arm that forgets less only because it moves less shows nothing here
    one rate      F_last at each rate that both have: mostly a measurement of the rate

None of it is planned. Holm's method corrects over the families, within each of the rows above and
each measure; the rates of "one rate" are one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import stream
from sparsecl.experiments.findings.tuned import read_trials
from sparsecl.experiments.study.study_plan import Arm
from sparsecl.experiments.study.trials import trial_name
from sparsecl.experiments.study.tune import TunedArm, Tuning
from sparsecl.metrics.bootstrap import FloatArray
from sparsecl.metrics.drift import equal_kl, path
from sparsecl.metrics.frontier import GRID, Curve, common_range, equal_loss, frontier
from sparsecl.metrics.multiplicity import holm
from sparsecl.metrics.significance import ContrastTest, pair, paired_test, unpaired_test
from sparsecl.metrics.table import number

KEY = "optimizer.lr"

RATE = f"{KEY}: "
"""How a difference of the learning rate begins (`Arm.differences`)."""

LEARNED, FORGOTTEN, BEST_BY, MOVED = "learned_loss", "F_last", "final_loss", "KL"

HEADINGS = {
    "equal loss": "at equal learned loss",
    "equal KL": "at equal movement",
    "best rates": "each at its best rate",
    "one rate": "at one rate",
}
"""Kind of a comparison, in words."""

At = Literal["equal loss", "equal KL", "best rates", "one rate"]


@dataclass(frozen=True, kw_only=True)
class RatePoint:
    """One run, or the mean of a seed's runs in several orders: nats per token."""

    seed: int
    rate: float
    learned: float
    forgotten: float
    moved: float | None = None
    """KL; None where it was not measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """Arms that differ in the learning rate alone."""

    name: str
    size: str | None
    reference: bool
    """It holds the reference of its size."""
    rates: tuple[float, ...]
    """Rising."""
    arms: tuple[str, ...]
    """One for each rate."""
    points: tuple[RatePoint, ...]
    """Of the runs that are done and have both figures."""
    frontiers: dict[int, Curve]
    """By seed; those with fewer than 2 points have none."""
    best: float | None
    """Rate of the lowest mean final loss, among those that lost fewest runs; None of trials."""
    label: str
    """For legends."""
    trials: Study | None = None
    """Where its runs are trials: all of these, as a study."""
    taken: float | None = None
    """Of trials: the rate that is frozen for the test."""

    @property
    def chosen(self) -> float | None:
        """The rate that stands for the family: taken by the tuning, or else the best."""
        return self.best if self.taken is None else self.taken

    @property
    def at_edge(self) -> bool:
        """The chosen rate is the lowest or the highest one: a better one may lie beyond."""
        return self.chosen in (self.rates[0], self.rates[-1])

    def arm(self, rate: float) -> str:
        """Name of the arm with this rate; it must be there."""
        return self.arms[self.rates.index(rate)]

    def paths(self) -> dict[int, Curve]:
        """Forgetting along the movement, by seed; those that have it at fewer than 2 KLs have
        none."""
        own: dict[int, list[tuple[float, float]]] = {}
        for point in self.points:
            if point.moved is not None:
                own.setdefault(point.seed, []).append((point.moved, point.forgotten))
        found = {seed: path(*zip(*runs, strict=True)) for seed, runs in own.items()}
        return {seed: one for seed, one in found.items() if one is not None}

    def mean_curve(self) -> tuple[FloatArray, FloatArray] | None:
        """Learned loss and mean forgetting [G], where the frontiers of all seeds reach."""
        every = list(self.frontiers.values())
        low, high = common_range(every) if every else (0.0, 0.0)
        if not low < high:
            return None
        grid = np.linspace(low, high, GRID)
        return grid, np.mean([one.at(grid) for one in every], axis=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class FamilyContrast:
    """One family minus the family of the reference."""

    family: str
    against: str
    at: At
    measure: str
    rates: tuple[float, float] | None
    """Of the two arms; None at equal loss and at equal KL."""
    reach: tuple[float, float] | None
    """Equal loss, equal KL: the learned losses or the KLs that are compared, nats per token."""
    test: ContrastTest | None
    adjusted: float | None = None
    """p after Holm's correction; None if there is none."""
    family_size: int = 1
    """Contrasts that were corrected together."""
    why: str = ""
    """The reason if there is no test."""


def families(study: Study, trials: Study | None = None) -> list[Family]:
    """The families of two rates or more, in the order of the plan.

    Args:
        trials: of its tuning (`read_trials`), where they are read already.
    """
    if tuned_over_rate(study):
        trials = read_trials(study) if trials is None else trials
        return [] if trials is None else _tried(study, trials)
    grouped: dict[tuple[str | None, tuple[str, ...]], dict[float, Arm]] = {}
    first = _reference_rates(study)
    for arm in study.plan.arms:
        if arm.role != "arm" or arm.size not in first:
            continue
        changed = [line for line in arm.differences if line.startswith(RATE)]
        rest = tuple(line for line in arm.differences if not line.startswith((RATE, "name:")))
        rate = _rates(changed[0])[1] if changed else first[arm.size]
        grouped.setdefault((arm.size, rest), {}).setdefault(rate, arm)
    groups = [dict(sorted(group.items())) for group in grouped.values() if len(group) > 1]
    named = [_name(list(group.values())) for group in groups]
    return [
        # Two families of one name would be told apart by nothing.
        _family(study, name if named.count(name) == 1 else next(iter(group.values())).name, group)
        for name, group in zip(named, groups, strict=True)
    ]


def tuned_over_rate(study: Study) -> bool:
    """Has its tuning tried learning rates?"""
    return study.plan.tuning is not None and KEY in study.plan.tuning.keys


def family_contrasts(study: Study, found: Sequence[Family]) -> list[FamilyContrast]:
    """Every family against that of the reference of its size, in all the ways above."""
    # All families are of trials, or none is: arms that differ in a tuned rate alone are refused.
    trials = next((family.trials for family in found), None)
    study = study if trials is None else trials
    references = {family.size: family for family in found if family.reference}
    couples = [
        (family, references[family.size])
        for family in found
        if not family.reference and family.size in references
    ]
    made = [_at_equal(study, *couple, "equal loss", len(couples)) for couple in couples]
    if any(point.moved is not None for family in found for point in family.points):
        made += [_at_equal(study, *couple, "equal KL", len(couples)) for couple in couples]
    for measure in (FORGOTTEN, LEARNED, BEST_BY) if trials is None else ():
        made += [_at_best(study, *couple, measure, len(couples)) for couple in couples]
    shared = [
        (family, against, rate)
        for family, against in couples
        for rate in family.rates
        if rate in against.rates
    ]
    made += [
        _at(study, family, against, (rate, rate), FORGOTTEN, "one rate", len(shared))
        for family, against, rate in shared
    ]
    return _corrected(made)


def frontier_text(contrasts: Sequence[FamilyContrast]) -> list[str]:
    """One line for each comparison, for a terminal; those at one rate are left to the report."""
    lines = []
    for one in contrasts:
        if one.at == "one rate":
            continue
        text = f"{one.family} minus {one.against}, {one.measure} {HEADINGS[one.at]}: "
        if one.test is None or one.test.mean is None:
            lines.append(text + (one.why or "no pair of runs"))
            continue
        text += number(one.test.mean, 4)
        if one.test.t is not None:
            text += f" [{number(one.test.t.low, 4)}, {number(one.test.t.high, 4)}]"
        text += f", {one.test.num_seeds} seeds, {place(one)}"
        text += "" if one.adjusted is None else f"; p (Holm) {number(one.adjusted, 4)}"
        lines.append(text)
    return lines


def place(one: FamilyContrast) -> str:
    """The learned losses, the KLs or the rates that stand side by side, or why there are none."""
    if one.reach is not None and one.at == "equal KL":
        return f"KL {one.reach[0]:.4g} to {one.reach[1]:.4g}"
    if one.reach is not None:
        return f"learned loss {one.reach[0]:.4g} to {one.reach[1]:.4g}"
    if one.rates is None:
        return one.why
    first, second = one.rates
    return f"rate {first:g}" if first == second else f"rates {first:g} and {second:g}"


def _tried(study: Study, trials: Study) -> list[Family]:
    """One family for each arm of the test, of its trials. None at all if none of them is done."""
    tuning = study.plan.tuning
    assert tuning is not None
    if not trials.counts()["done"]:
        return []
    made = []
    for one in tuning.arms:
        arm, group = study.plan.arm(one.arm), _trials_by_rate(trials, tuning, one)
        if len(group) > 1:
            family = replace(
                _family(trials, one.arm, group),
                reference=study.plan.is_reference(arm),
                best=None,
                label=arm.label,
                trials=trials,
                taken=float(one.taken[KEY]),
            )
            made.append(family)
    return made


def _trials_by_rate(trials: Study, tuning: Tuning, one: TunedArm) -> dict[float, Arm]:
    """Rate -> trial of an arm, rising; other tuned keys stand at the values taken."""
    there = {arm.name: arm for arm in trials.plan.arms}
    others = [key for key in one.taken if key != KEY]
    found = {}
    for trial in one.trials:
        arm = there.get(trial_name(one.arm, trial.values))
        if arm is not None and all(trial.values[key] == one.taken[key] for key in others):
            found[float(trial.values[KEY])] = arm
    return dict(sorted(found.items()))


def _reference_rates(study: Study) -> dict[str | None, float]:
    """Size -> learning rate of its reference, as the differences of the others tell it."""
    rates: dict[str | None, float] = {}
    for arm in study.plan.arms:
        for line in arm.differences:
            if arm.role == "arm" and line.startswith(RATE):
                rates[arm.size] = _rates(line)[0]
    return rates


def _rates(line: str) -> tuple[float, float]:
    """The reference's rate and the arm's."""
    old, new = line.removeprefix(RATE).split(" -> ")
    return float(old), float(new)


def _name(arms: list[Arm]) -> str:
    """What the arms of a family have in common: levels of a grid, or the beginning of names."""
    levels = [arm.levels for arm in arms]
    common = [
        f"{axis} {level}"
        for axis, level in levels[0].items()
        if all(other.get(axis) == level for other in levels)
    ]
    if common:
        return ", ".join([*([arms[0].size] if arms[0].size else []), *common])
    start = arms[0].name
    for arm in arms:
        while not arm.name.startswith(start):
            start = start[:-1]
    return start.rstrip("_-.") or arms[0].name


def _family(study: Study, name: str, group: dict[float, Arm]) -> Family:
    rates, points = tuple(group), []
    for rate, arm in group.items():
        learned, forgotten = (study.values(arm.name, m) for m in (LEARNED, FORGOTTEN))
        moved = study.values(arm.name, MOVED)
        points += [
            RatePoint(
                seed=seed,
                rate=rate,
                learned=learned[seed],
                forgotten=forgotten[seed],
                moved=moved.get(seed),
            )
            for seed in learned
            if seed in forgotten
        ]
    frontiers = {}
    for seed in study.plan.seeds:
        own = [point for point in points if point.seed == seed]
        one = frontier(
            [point.rate for point in own],
            [point.learned for point in own],
            [point.forgotten for point in own],
        )
        if one is not None:
            frontiers[seed] = one
    return Family(
        name=name,
        size=next(iter(group.values())).size,
        reference=any(study.plan.is_reference(arm) for arm in group.values()),
        rates=rates,
        arms=tuple(arm.name for arm in group.values()),
        points=tuple(points),
        frontiers=frontiers,
        best=_best(study, group),
        label=name,
    )


def _best(study: Study, group: dict[float, Arm]) -> float | None:
    """A rate at which runs diverge is no candidate: its mean would be over lucky seeds."""
    values = {rate: study.values(arm.name, BEST_BY) for rate, arm in group.items()}
    most = max(map(len, values.values()))
    if most == 0:
        return None
    means = {r: np.mean(list(found.values())) for r, found in values.items() if len(found) == most}
    return min(means, key=lambda rate: means[rate])


def _paired(study: Study, one: Family, other: Family) -> bool:
    """Do runs of one seed read the same data, whatever the rate?"""
    return len({study.plan.arm(name).stream for name in (*one.arms, *other.arms)}) == 1


def _options(study: Study, measure: str, count: int, *names: str) -> dict:
    analysis = study.plan.analysis
    return {
        "alpha": analysis.alpha,
        "margin": analysis.margins.get(measure),
        "num_contrasts": count,
        "rng": stream("frontier", *names, measure),
    }


def _at_equal(study: Study, family: Family, against: Family, at: At, count: int) -> FamilyContrast:
    """At equal learned loss, or at equal KL."""
    if at == "equal loss":
        compare, curves = equal_loss, (family.frontiers, against.frontiers)
    else:
        compare, curves = equal_kl, (family.paths(), against.paths())
    found = compare(
        *curves,
        paired=_paired(study, family, against),
        **_options(study, FORGOTTEN, count, family.name, against.name, at),
    )
    return FamilyContrast(
        family=family.name,
        against=against.name,
        at=at,
        measure=FORGOTTEN,
        rates=None,
        reach=(float(found.grid[0]), float(found.grid[-1])) if found.test else None,
        test=found.test,
        why=found.why,
    )


def _at_best(
    study: Study, family: Family, against: Family, measure: str, count: int
) -> FamilyContrast:
    if family.best is None or against.best is None:
        return FamilyContrast(
            family=family.name,
            against=against.name,
            at="best rates",
            measure=measure,
            rates=None,
            reach=None,
            test=None,
            why="no run of one of the two is done",
        )
    return _at(study, family, against, (family.best, against.best), measure, "best rates", count)


def _at(
    study: Study,
    family: Family,
    against: Family,
    rates: tuple[float, float],
    measure: str,
    at: At,
    count: int,
) -> FamilyContrast:
    """Two arms as they are."""
    names = family.arm(rates[0]), against.arm(rates[1])
    first, second = (study.values(name, measure) for name in names)
    options = _options(study, measure, count, *names, at)
    if _paired(study, family, against):
        test = paired_test(pair(first, second).differences, **options)
    else:
        test = unpaired_test(list(first.values()), list(second.values()), **options)
    return FamilyContrast(
        family=family.name,
        against=against.name,
        at=at,
        measure=measure,
        rates=rates,
        reach=None,
        test=test,
    )


def _corrected(made: list[FamilyContrast]) -> list[FamilyContrast]:
    """Holm within each kind and measure; a contrast without a p keeps its place in the family."""
    done: dict[int, FamilyContrast] = {}
    for key in dict.fromkeys((one.at, one.measure) for one in made):
        places = [k for k, one in enumerate(made) if (one.at, one.measure) == key]
        p = [one.test.p if one.test else None for one in (made[k] for k in places)]
        whole = holm([1.0 if value is None else value for value in p])
        for k, value, adjusted in zip(places, p, whole, strict=True):
            kept = None if value is None else adjusted
            done[k] = replace(made[k], adjusted=kept, family_size=len(places))
    return [done[k] for k in range(len(made))]
