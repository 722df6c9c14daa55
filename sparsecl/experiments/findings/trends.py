"""What a study shows beyond its contrasts: crossovers, trade-offs, density, stops, interference.

All are descriptions of the arms that learn in sequence, over the seeds that are done; each says how
many seeds stand behind it, or in words why there is no answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.experiments.findings.collect import Study
from sparsecl.experiments.findings.compare import sequential, stream
from sparsecl.experiments.findings.curves import band, domains_of, num_phases, order_of, round_curve
from sparsecl.experiments.findings.frontier import (
    Family,
    FamilyContrast,
    families,
    family_contrasts,
)
from sparsecl.experiments.findings.onset import ProbedArm, probed_arms
from sparsecl.experiments.findings.optima import NOT_A_SETTING, SizeTrend, size_trends
from sparsecl.experiments.findings.orders import OrderEffect, order_effects
from sparsecl.experiments.findings.tuned import read_trials
from sparsecl.experiments.study.measures import MEASURES, learned_losses
from sparsecl.experiments.study.study_plan import Arm
from sparsecl.metrics.crossover import Crossover, crossover, moving_average
from sparsecl.metrics.interference import INTERFERENCE, Interference, read_interference
from sparsecl.metrics.matrix import FloatArray
from sparsecl.metrics.pareto import Better, ParetoPoint, pareto_front
from sparsecl.metrics.relation import MIN_DENSITIES, Relation, density_relation

TRADE_OFFS = (("first_loss", "F_last"), ("learned_loss", "F_last"), ("learning_area", "F_last"))
"""What learning costs against what is kept of it: the columns of each Pareto front."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmCrossover:
    """From which phase on an arm is better than the reference."""

    arm: str
    curve: str | None
    """Domain whose loss is compared; None = the mean over all domains."""
    seeds: tuple[int, ...]
    planned: int
    result: Crossover | None
    band: tuple[FloatArray, FloatArray] | None = None
    """Pointwise interval of the smoothed difference, one value a round; None where
    there are too few seeds."""
    why: str = ""
    """The reason if there is no result."""


@dataclass(frozen=True, kw_only=True)
class Front:
    """Arms that nobody beats in both measures at once."""

    measures: tuple[str, str]
    points: tuple[ParetoPoint, ...]
    seeds: tuple[int, ...]
    """Seeds that every arm has finished or failed."""


@dataclass(frozen=True, kw_only=True)
class DensityTrend:
    """Forgetting against density, over arms that differ in density and nothing else."""

    kind: str
    arms: tuple[str, ...]
    relation: Relation | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One phase of a control that was stopped at the losses of the arm that it belongs to."""

    arm: str
    of: str
    phase: int
    domain: str
    target: float
    """Mean loss of `of` on the phase's domain right after it, over the seeds of the pair, nats per
    token, on the text that is scored inside phases."""
    reached: float
    """That of the control."""
    missed: int
    """Seeds in which the control's phase ran to its end without getting there."""
    seeds: tuple[int, ...]
    planned: int


@dataclass(frozen=True, kw_only=True)
class AloneGap:
    """Loss of a domain learned in sequence, against the same domain learned alone."""

    arm: str
    alone: str
    domain: str
    in_sequence: float
    by_itself: float
    seeds: tuple[int, ...]
    planned: int


@dataclass(frozen=True, kw_only=True)
class InterferenceFigure:
    """One mean of interference.json over the seeds of an arm."""

    arm: str
    name: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Trends:
    """All of them."""

    crossovers: tuple[ArmCrossover, ...]
    fronts: tuple[Front, ...]
    densities: tuple[DensityTrend, ...]
    sizes: tuple[SizeTrend, ...]
    families: tuple[Family, ...]
    family_contrasts: tuple[FamilyContrast, ...]
    trials: Study | None
    """Of a tuned study, as far as they are there."""
    stops: tuple[Stop, ...]
    alone: tuple[AloneGap, ...]
    orders: tuple[OrderEffect, ...]
    probed: tuple[ProbedArm, ...]
    interference: tuple[InterferenceFigure, ...]
    interference_problems: tuple[str, ...]


NO_TRENDS = Trends(
    crossovers=(),
    fronts=(),
    densities=(),
    sizes=(),
    families=(),
    family_contrasts=(),
    trials=None,
    stops=(),
    alone=(),
    orders=(),
    probed=(),
    interference=(),
    interference_problems=(),
)


def trends(study: Study) -> Trends:
    """Compute everything. Same records, same result. Of a study of streams there are none."""
    if study.plan.subject == "stream":
        return NO_TRENDS
    interference, problems = interference_figures(study)
    trials = read_trials(study)
    over_rates = families(study, trials)
    return Trends(
        crossovers=tuple(crossovers(study)),
        fronts=tuple(front for pair in TRADE_OFFS if (front := pareto(study, pair)) is not None),
        densities=tuple(density_trends(study)),
        sizes=tuple(size_trends(study)),
        families=tuple(over_rates),
        family_contrasts=tuple(family_contrasts(study, over_rates)),
        trials=trials,
        stops=tuple(stops(study)),
        alone=tuple(alone_gaps(study)),
        orders=tuple(order_effects(study)),
        probed=tuple(probed_arms(study)),
        interference=tuple(interference),
        interference_problems=tuple(problems),
    )


def crossovers(study: Study) -> list[ArmCrossover]:
    """Every arm against the reference: all domains, and the core domain if the plan has one.

    None where the arms end after one phase: there is nothing to cross.
    """
    core = study.plan.analysis.core
    reference = round_curve(study, study.plan.analysis.reference, None)
    if reference is not None and len(reference.x) < 2:
        return []
    arms = [arm for arm in sequential(study.plan.arms) if not study.plan.is_reference(arm)]
    curves = (None,) if core is None else (None, core)
    return [
        _crossover(study, arm, study.plan.reference_of(arm), curve)
        for curve in curves
        for arm in arms
    ]


def _crossover(study: Study, arm: Arm, reference: str, domain: str | None) -> ArmCrossover:
    mine, other = round_curve(study, arm.name, domain), round_curve(study, reference, domain)
    planned = len(study.plan.seeds_of(arm.name))

    seeds = [s for s in mine.seeds if s in other.seeds] if mine and other else []
    found = ArmCrossover(
        arm=arm.name, curve=domain, seeds=tuple(seeds), planned=planned, result=None
    )
    if mine is None or other is None:
        return replace(found, why="no finished run has this curve")
    if len(mine.x) != len(other.x):
        return replace(found, why="the arms have unequal numbers of phases")
    if not seeds:
        return replace(found, why="no seed is finished in both arms")
    rows, others = (c.values[[c.seeds.index(seed) for seed in seeds]] for c in (mine, other))
    level = 1 - study.plan.analysis.alpha
    name = f"{arm.name} {domain}"
    return replace(
        found,
        result=crossover(rows, others, level=level, rng=stream("crossover", name)),
        band=band(moving_average(rows - others), level),
    )


def pareto(study: Study, measures: tuple[str, str]) -> Front | None:
    """The front of two measures over the arms that learn in sequence; None without values.

    Seeds that some arm has not run yet are left out for all; a run that failed keeps its arm off
    the front.
    """
    arms = [
        arm.name
        for arm in sequential(study.plan.arms)
        if all(study.values(arm.name, measure) for measure in measures)
    ]
    status = [study.statuses(arm) for arm in arms]
    seeds = [
        seed
        for seed in study.plan.seeds
        if all(one.get(seed) in ("done", "failed") for one in status)
    ]
    if len(arms) < 2 or not seeds:
        return None
    values = np.full((len(seeds), len(arms), 2), np.nan)
    for (n, arm), (c, measure) in _product(arms, measures):
        found = study.values(arm, measure)
        values[:, n, c] = [found.get(seed, np.nan) for seed in seeds]
    better: list[Better] = [MEASURES[measure].better for measure in measures]
    points = pareto_front(arms, values, better, rng=stream("pareto", *measures))
    return Front(measures=measures, points=tuple(points), seeds=tuple(seeds))


def _product(arms: list[str], measures: tuple[str, str]) -> list[tuple]:
    return [(arm, column) for arm in enumerate(arms) for column in enumerate(measures)]


def density_trends(study: Study) -> list[DensityTrend]:
    """F_last against density, for each kind of topology with enough densities below 1."""
    groups: dict[tuple[str, ...], list[Arm]] = {}
    for arm in study.plan.arms:
        if arm.role == "arm" and arm.density < 1.0:
            others = (line for line in arm.differences if not line.startswith(NOT_A_SETTING))
            kind = arm.kind if arm.size is None else f"{arm.kind}, {arm.size}"
            groups.setdefault((kind, *others), []).append(arm)
    found = []
    for (kind, *_), arms in groups.items():
        if len({arm.density for arm in arms}) >= MIN_DENSITIES:
            found.append(_density_trend(study, kind, sorted(arms, key=lambda arm: arm.density)))
    return found


def _density_trend(study: Study, kind: str, arms: list[Arm]) -> DensityTrend:
    names = tuple(arm.name for arm in arms)
    values = [study.values(name, "F_last") for name in names]
    table = [[found.get(seed, np.nan) for found in values] for seed in study.plan.seeds]
    level = 1 - study.plan.analysis.alpha
    try:
        relation = density_relation([arm.density for arm in arms], table, level=level)
    except ValueError as error:
        return DensityTrend(kind=kind, arms=names, relation=None, why=str(error))
    return DensityTrend(kind=kind, arms=names, relation=relation)


def stops(study: Study) -> list[Stop]:
    """At which losses the stopped_early controls were stopped, beside what they aimed at."""
    found = []
    for arm in study.plan.arms:
        if arm.role != "stopped_early" or arm.of is None:
            continue
        mine, other = _by_phase(study, arm.name), _by_phase(study, arm.of)
        seeds = [seed for seed in mine if seed in other]
        for phase, index in enumerate(order_of(study) if seeds else ()):
            reached, target = (
                np.array([side[seed][phase] for seed in seeds], dtype=np.float64)
                for side in (mine, other)
            )
            found.append(
                Stop(
                    arm=arm.name,
                    of=arm.of,
                    phase=phase,
                    domain=domains_of(study)[index],
                    target=float(target.mean()),
                    reached=float(reached.mean()),
                    missed=int(np.count_nonzero(reached > target)),
                    seeds=tuple(seeds),
                    planned=len(study.plan.seeds_of(arm.name)),
                )
            )
    return found


def _by_phase(study: Study, arm: str) -> dict[int, list[float | None]]:
    """Seed -> loss of each phase's own domain right after it, of the runs with the whole stream."""
    found = {r.run.seed: learned_losses(r.records) for r in study.done(arm) if r.records}
    return {seed: losses for seed, losses in found.items() if len(losses) == num_phases(study)}


def alone_gaps(study: Study) -> list[AloneGap]:
    """What learning a domain after others costs it: its loss right after its own training."""
    gaps = []
    for arm in study.plan.arms:
        if arm.role != "alone" or arm.of is None:
            continue
        alone, mine = _learned(study, arm.name), _learned(study, arm.of)
        for domain in dict.fromkeys(domain for _, domain in alone):
            pairs = {s: v for (s, name), v in alone.items() if name == domain}
            seeds = [seed for seed in pairs if (seed, domain) in mine]
            if seeds:
                gaps.append(
                    AloneGap(
                        arm=arm.of,
                        alone=arm.name,
                        domain=domain,
                        in_sequence=float(np.mean([mine[seed, domain] for seed in seeds])),
                        by_itself=float(np.mean([pairs[seed] for seed in seeds])),
                        seeds=tuple(seeds),
                        planned=len(study.plan.seeds_of(arm.name)),
                    )
                )
    return gaps


def _learned(study: Study, arm: str) -> dict[tuple[int, str], float]:
    """(seed, domain) -> loss after the domain's first phase."""
    found = {}
    for result in study.done(arm):
        matrix = result.matrix
        if matrix is None:
            continue
        for phase, index in enumerate(matrix.order):
            loss = float(matrix.loss[phase + 1, index])
            if index >= 0 and np.isfinite(loss):
                found.setdefault((result.run.seed, matrix.domains[index]), loss)
    return found


INTERFERENCE_FIGURES: dict[str, tuple[str, str, Callable[[Interference], float | None]]] = {
    "cosine": (
        "",
        "cosine of the gradients of two domains, on live weights, mean over pairs",
        lambda found: found.means.get("cosine_off_diagonal"),
    ),
    "loss_change": (
        "nats per token",
        "change of the other domains' loss by an update of fixed relative size",
        lambda found: found.means.get("loss_change_off_diagonal"),
    ),
    "kl": (
        "nats per token",
        "KL divergence of the other domains' predictions before and after that update",
        lambda found: found.means.get("kl_off_diagonal"),
    ),
    "kl_ratio": (
        "",
        "the same, over that of the updated domain itself",
        lambda found: found.means.get("kl_ratio"),
    ),
    "overlap": (
        "",
        "Jaccard index of the tenths of live weights with the largest gradients of two domains",
        lambda found: found.means.get("overlap_top10_off_diagonal"),
    ),
    "logits": (
        "share",
        "logits that one live weight moves",
        lambda found: found.single_weight.logits,
    ),
}
"""Name -> unit, meaning, and how it is read from a run's interference.json."""


def interference_figures(study: Study) -> tuple[list[InterferenceFigure], list[str]]:
    """Means over the seeds that have an interference.json, and files that cannot be read."""
    found: dict[str, dict[int, Interference]] = {}
    problems = []
    for result in study.results:
        if result.status != "done" or result.run.order not in ("", study.plan.shown_order):
            continue
        try:
            value = read_interference(result.folder / INTERFERENCE)
        except MissingInputError:
            continue
        except (DataError, UserError) as error:
            problems.append(str(error))
            continue
        found.setdefault(result.run.arm, {})[result.run.seed] = value
    figures = []
    for arm, by_seed in found.items():
        for name, (_, _, read) in INTERFERENCE_FIGURES.items():
            values = {seed: v for seed, one in by_seed.items() if (v := read(one)) is not None}
            figures.append(
                InterferenceFigure(
                    arm=arm, name=name, seeds=tuple(values), values=tuple(values.values())
                )
            )
    return figures, problems
