"""Fair tuning: every arm of a study tries the same values on seeds and an order of its own.

A study file asks for it with a block `tune` (TuneConfig). What came out (Tuning) stands in
plan.json: the whole curve of every arm, and the values that are frozen for the test. `choose` says
which: the best mean, or of values that are as good the one that changes least.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from sparsecl import config as configs
from sparsecl.config_nodes import empty_mapping, override
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study.measures import MEASURES, TEXT_MEASURES
from sparsecl.experiments.study.orders import Order

Number = int | float
Values = dict[str, Number]
"""Key of a run config -> value."""
Grid = dict[str, tuple[Number, ...]]
End = Literal["lowest", "highest"]
METHOD = "methods."
"""How the keys begin that only some arms have."""


@dataclass(frozen=True, kw_only=True)
class TuneOn:
    """What trials run on; the test uses neither."""

    seeds: tuple[int, ...]
    """Each trial is run once with each."""

    order: Order
    """Domain trained in each phase, or a word for it (study/orders.py)."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be at least one, >= 0 and distinct, got {self.seeds}")
        if not self.order:
            raise ValueError("order is empty; name the domain of each phase")

    @property
    def domains(self) -> tuple[str, ...]:
        """The order by name, as it stands in a study that is read."""
        assert not isinstance(self.order, str), "a study that is read has no words for orders"
        return self.order


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """The tuning that a study asks for."""

    keys: dict[str, tuple[int | float, ...]]
    """Key of a run config -> values to try, rising. Several keys: every combination. A key of a
    method, methods.NAME.KEY, is tried by the arms that have the method."""

    on: TuneOn

    by: str = "final_loss"
    """The measure whose mean over the tuning seeds decides (experiments/study/measures.py)."""

    budget: Literal["equal"] = "equal"
    """Every arm gets the same values of every key that it has."""

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("keys is empty; give at least one, for example optimizer.lr")
        for key, values in self.keys.items():
            if len(values) < 2 or any(a >= b for a, b in zip(values, values[1:], strict=False)):
                raise ValueError(
                    f"keys.{key} must be at least two values, each larger than the one before, "
                    f"got {list(values)}"
                )
        if self.by not in TEXT_MEASURES:
            raise ValueError(
                f"by: there is no measure {self.by}; there are {', '.join(TEXT_MEASURES)}"
            )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination of values for one arm: a point of its curve."""

    values: dict[str, int | float]

    scores: tuple[float | None, ...]
    """The measure, in its unit, in the order of the tuning seeds. None: the run diverged, or the
    measure is not defined for it."""

    mean: float | None = None
    """Over the seeds; None if a score is missing: such a trial is not chosen."""

    error: float | None = None
    """Standard error of the mean difference from the arm's best trial, seed by seed; None with
    one seed."""


@dataclass(frozen=True, kw_only=True)
class TunedArm:
    """What tuning says about one arm."""

    arm: str

    base: dict[str, int | float | None] = field(default_factory=dict)
    """What the arm's config says by itself; None where that is no number."""

    taken: dict[str, int | float] = field(default_factory=dict)
    """Frozen for the test."""

    best: dict[str, int | float] = field(default_factory=dict)
    """Of the best mean. `taken` is another one only in a tie."""

    ties: tuple[dict[str, int | float], ...] = ()
    """Values of other trials that are as good: within one standard error of the difference from
    the best. Of these and the best, `taken` is the smaller change from the base, then smaller."""

    edges: dict[str, Literal["lowest", "highest"]] = field(default_factory=dict)
    """Key -> end of the grid, as it was at last, at which `best` or `taken` lies."""

    trials: tuple[Trial, ...] = ()
    """The whole curve."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A tuning that is done."""

    config: TuneConfig
    """As it was asked for."""

    keys: dict[str, tuple[int | float, ...]]
    """The grid at last."""

    added: dict[str, tuple[int | float, ...]] = field(default_factory=dict)
    """Values by which the grid was widened, for every arm."""

    notes: tuple[str, ...] = ()
    """Why it was widened, and where it could not be."""

    runs: int = 0
    """Runs of all trials."""

    tokens: int = 0
    """Training tokens of these runs, as planned."""

    flops: int = 0
    """Training FLOPs of these runs by live weights, as planned."""

    arms: tuple[TunedArm, ...] = ()

    def taken(self, arm: str) -> Values:
        """The frozen values of an arm; it must be there."""
        return next(one.taken for one in self.arms if one.arm == arm)


def own_grid(config: RunConfig, grid: Grid) -> Grid:
    """The part of a grid that an arm has: keys of methods that it is without are left out."""
    there = {
        name for name, block in configs.to_dict(config)["methods"].items() if block is not None
    }
    return {
        key: values
        for key, values in grid.items()
        if not key.startswith(METHOD) or key.split(".")[1] in there
    }


def points(grid: Grid) -> list[Values]:
    """Every combination of the values of a grid."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def with_values(config: RunConfig, values: Mapping[str, Number]) -> RunConfig:
    """A run config with these values laid over it.

    Raises:
        UserError: there is no such key, or it cannot have this value.
    """
    for key, value in values.items():
        root = empty_mapping("defaults")
        text = f"{key}={json.dumps(value)}"
        try:
            override(root, text)
            config = configs.overlay(config, root, "")
        except UserError as error:
            problem = str(error).removeprefix(f"--set {text}: ").removeprefix(f"{key}: ")
            raise UserError(f"tune.keys.{key}: {problem} (value {value})") from None
    return config


def base_values(config: RunConfig, keys: Iterable[str]) -> dict[str, Number | None]:
    """What a config says of these keys; None where it says no number."""
    found: dict[str, Number | None] = {}
    for key in keys:
        node: Any = configs.to_dict(config)
        for name in key.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        is_number = isinstance(node, (int, float)) and not isinstance(node, bool)
        found[key] = node if is_number else None
    return found


def choose(
    arm: str, base: Mapping[str, Number | None], trials: Sequence[Trial], by: str
) -> TunedArm:
    """The value to freeze for one arm.

    Args:
        base: values of the arm's own config.
        trials: with scores alone; means and errors are filled in. At least one has all scores.
        by: the measure, which knows its direction.

    Raises:
        UserError: no trial has a score on every seed.
    """
    sign = 1.0 if MEASURES[by].better == "lower" else -1.0
    means = [_mean(trial.scores) for trial in trials]
    known = [place for place, mean in enumerate(means) if mean is not None]
    if not known:
        raise UserError(
            f"tune: {arm}: no value of the grid has a {by} on every tuning seed; its runs diverged "
            "or were too short. Give other values under tune.keys, and another --study_dir."
        )

    def order(place: int) -> tuple[Any, ...]:
        return (_change(base, trials[place].values), *trials[place].values.values())

    best = min(known, key=lambda place: (sign * (means[place] or 0.0), order(place)))
    errors: dict[int, float | None] = {}
    as_good = [best]
    for place in known:
        gap, error = _gap(trials[place].scores, trials[best].scores)
        errors[place] = error
        if place != best and abs(gap) <= (error or 0.0):
            as_good.append(place)
    taken = min(as_good, key=order)
    return TunedArm(
        arm=arm,
        base=dict(base),
        taken=trials[taken].values,
        best=trials[best].values,
        ties=tuple(trials[place].values for place in sorted(as_good) if place != best),
        trials=tuple(
            Trial(values=t.values, scores=t.scores, mean=means[n], error=errors.get(n))
            for n, t in enumerate(trials)
        ),
    )


def edges_of(one: TunedArm, grid: Grid) -> dict[str, End]:
    """Key -> end of its range at which the best value lies, or the one taken in its place."""
    found: dict[str, End] = {}
    for key, values in grid.items():
        ends: dict[Number, End] = {values[0]: "lowest", values[-1]: "highest"}
        for chosen in (one.best, one.taken):
            if chosen[key] in ends:
                found.setdefault(key, ends[chosen[key]])
    return found


def widen(
    grid: Grid, arms: Sequence[TunedArm], accepts: Callable[[Values], str]
) -> tuple[Grid, list[str]]:
    """The grid with one more value beyond each end at which some arm has its best, and why.

    The value is a geometric step: the ratio of the last two values of the grid, once more.

    Args:
        arms: with their edges.
        accepts: "" if every arm that has the keys can be run with these values, else why not.
    """
    wider, notes = dict(grid), []
    for key in grid:
        for end in ("lowest", "highest"):
            wanting = [one.arm for one in arms if one.edges.get(key) == end]
            if not wanting:
                continue
            value = _beyond(grid[key], end)
            first = {name: values[0] for name, values in grid.items()}
            why = "0 has no ratio" if value is None else accepts({**first, key: value})
            head = f"{key}: at the {end} value for {', '.join(wanting)}"
            if value is None or why:
                notes.append(f"{head}; the grid cannot be widened there ({why})")
                continue
            wider[key] = (value, *wider[key]) if end == "lowest" else (*wider[key], value)
            notes.append(f"{head}; {value:g} was tried too, {_by_whom(key)}")
    return wider, notes


def _by_whom(key: str) -> str:
    return "by every arm that has it" if key.startswith(METHOD) else "by every arm"


def _beyond(values: Sequence[Number], end: str) -> Number | None:
    """One more value beyond an end; None if there is no ratio to go by."""
    last, before = (values[0], values[1]) if end == "lowest" else (values[-1], values[-2])
    if last <= 0 or before <= 0:
        return None
    value = float(f"{last * last / before:.6g}")  # 0.9, not 0.8999999999999999
    if all(isinstance(known, int) for known in values):
        value = round(value)
    return None if value == last else value


def _change(base: Mapping[str, Number | None], values: Values) -> float:
    """How far values are from the base: |ln(value / base)|, summed over the keys. Away from 0, or
    from no number, is further than any factor."""
    total = 0.0
    for key, value in values.items():
        old = base[key]
        if old is None or (old != value and min(old, value) <= 0):
            return math.inf
        total += abs(math.log(value / old)) if old != value else 0.0
    return round(total, 9)  # twice and half of the base are equally far


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None and math.isfinite(score)]
    return math.fsum(known) / len(known) if len(known) == len(scores) else None


def _gap(one: Sequence[float | None], two: Sequence[float | None]) -> tuple[float, float | None]:
    """Mean difference seed by seed, and its standard error; None with one seed."""
    # Of the difference, not of each mean: what a seed adds to all trials alike says nothing.
    gaps = [a - b for a, b in zip(one, two, strict=True) if a is not None and b is not None]
    mean = math.fsum(gaps) / len(gaps)
    if len(gaps) < 2:
        return mean, None
    square = math.fsum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
    return mean, math.sqrt(square / len(gaps))
