"""What the trials of a study's tuning say: which are done, and the values that each arm gets."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sparsecl.errors import InvariantError
from sparsecl.experiments.findings.collect import Study, collect, status_of
from sparsecl.experiments.study.study_file import ScaledStudy
from sparsecl.experiments.study.study_plan import (
    PLAN,
    TUNING,
    Run,
    StudyPlan,
    failure_file,
    read_plan,
)
from sparsecl.experiments.study.trials import asked, cost, trial_name
from sparsecl.experiments.study.tune import (
    Grid,
    Trial,
    TunedArm,
    Tuning,
    base_values,
    choose,
    edges_of,
    own_grid,
    points,
)
from sparsecl.opening import read_plain

NOT_FINITE = "not finite"
"""What the reason of a run says that ended for its gradients (engine/observe/health.py)."""


def diverged(folder: Path, run: Run) -> bool:
    """Has a run failed for its values? That is an answer, and it is not tried again."""
    if status_of(folder, run)[0] != "failed":
        return False
    try:
        found = json.loads(read_plain(failure_file(folder, run)))
        return found["exit_code"] == InvariantError.exit_code and NOT_FINITE in found["reason"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def undecided(folder: Path, plan: StudyPlan) -> list[Run]:
    """Runs of a folder of trials that have no answer yet: neither done nor diverged."""
    return [
        run
        for run in plan.runs
        if status_of(folder, run)[0] != "done" and not diverged(folder, run)
    ]


def read_trials(study: Study) -> Study | None:
    """All trials of a study's tuning as one study: an arm for each trial, of the grid and then of
    what it was widened by. None if it is not tuned, or its folders of trials are gone.

    Raises:
        UserError: a folder of trials holds something else.
        DataError: the records of a run are damaged.
    """
    if study.plan.tuning is None:
        return None
    places = [study.folder / name for name in TUNING]
    found = [collect(place) for place in places if (place / PLAN).is_file()]
    if not found:
        return None
    plan = replace(
        found[0].plan,
        arms=tuple(arm for one in found for arm in one.plan.arms),
        runs=tuple(run for one in found for run in one.plan.runs),
    )
    results = tuple(result for one in found for result in one.results)
    return Study(folder=found[0].folder, plan=plan, results=results)


def trial_scores(folder: Path) -> dict[str, tuple[float | None, ...]]:
    """Trial -> score on each tuning seed, of all trials of a folder.

    Raises:
        DataError: the records of a run are damaged.
    """
    study = collect(folder)
    measure = study.plan.analysis.metrics[0]
    return {
        arm.name: tuple(study.values(arm.name, measure).get(seed) for seed in study.plan.seeds)
        for arm in study.plan.arms
    }


def tuned_arms(study: ScaledStudy, grid: Grid, folders: Sequence[Path]) -> list[TunedArm]:
    """What each arm gets by its trials in these folders, which are decided.

    Raises:
        UserError: an arm has no trial with all scores.
    """
    tune, scores = asked(study), {}
    for folder in folders:
        scores.update(trial_scores(folder))
    arms = []
    for setting in study.settings:
        own = own_grid(setting.config, grid)
        trials = [
            Trial(values=values, scores=scores[trial_name(setting.name, values)])
            for values in points(own)
        ]
        one = choose(setting.name, base_values(setting.config, own), trials, tune.by)
        arms.append(replace(one, edges=edges_of(one, own)))
    return arms


def frozen(study: ScaledStudy, grid: Grid, folders: Sequence[Path], notes: Sequence[str]) -> Tuning:
    """The tuning that stands in plan.json, with the curve of every arm.

    Args:
        grid: as it was at last.
        folders: of the trials, decided.
        notes: about its widening.
    """
    tune = asked(study)
    costs = [cost(read_plan(folder)) for folder in folders]
    added = {
        key: tuple(value for value in values if value not in tune.keys[key])
        for key, values in grid.items()
    }
    return Tuning(
        config=tune,
        keys=dict(grid),
        added={key: values for key, values in added.items() if values},
        notes=tuple(notes),
        runs=sum(len(read_plan(folder).runs) for folder in folders),
        tokens=sum(tokens for tokens, _ in costs),
        flops=sum(flops for _, flops in costs),
        arms=tuple(tuned_arms(study, grid, folders)),
    )
