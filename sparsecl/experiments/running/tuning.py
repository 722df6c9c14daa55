"""Tunes a study before its test: trials in STUDY/tuning, then those that widen the grid.

All state is in these folders, and nothing is written that does not follow from them: it may be
stopped at any moment, and started again it comes to the same values. They are frozen when the
study's plan.json is written, and never sought again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.findings.tuned import frozen, tuned_arms, undecided
from sparsecl.experiments.study.build_plan import open_study, same_study
from sparsecl.experiments.study.controls import Priced
from sparsecl.experiments.study.study_file import ScaledStudy
from sparsecl.experiments.study.study_plan import PLAN, TUNING, StudyPlan, check_study, read_plan
from sparsecl.experiments.study.trials import asked, priced_once, trial_config, trials_plan
from sparsecl.experiments.study.tune import Tuning, Values, own_grid, widen
from sparsecl.files import writing
from sparsecl.opening import make_folder

Work = Callable[[Path, StudyPlan, dict[str, RunConfig]], None]
"""Runs, or submits, what has no answer yet of a folder of trials."""


def tuned_before(folder: Path, plan: StudyPlan) -> Tuning | None:
    """The tuning that stands in the folder's plan.json; None if it has none yet.

    Args:
        plan: of the test as it is before its tuning.

    Raises:
        UserError: the folder holds another study.
    """
    if not (folder / PLAN).exists():
        return None
    same_study(folder, plan)
    return read_plan(folder).tuning


def tune(
    folder: Path,
    study: ScaledStudy,
    plan: StudyPlan,
    price: Callable[[RunConfig], Priced],
    *,
    command: Sequence[str],
    work: Work,
) -> Tuning | None:
    """Tune a study, as far as it is not tuned yet; its folder is locked.

    Args:
        plan: of the test as it is before its tuning.
        work: called for a folder of trials, at most once for each, if any has no answer.

    Returns:
        The tuning; None if trials have no answer yet: they are queued, or have failed.

    Raises:
        UserError: the folder holds another study, or no value of an arm can be used.
        CannotCreateError, StorageError: it cannot be written.
    """
    known = tuned_before(folder, plan)
    if known is not None:
        return known
    check_study(folder, plan)
    config = asked(study)
    price = priced_once(price, config)
    grid, notes, places = dict(config.keys), [], []
    for name in TUNING:
        before = dict(config.keys) if places else None
        trials, arm_configs = trials_plan(
            study, price, grid, known=before, threads=plan.threads, command=command
        )
        place = folder / name
        with writing(place):
            make_folder(place)
        trials = open_study(place, trials, arm_configs)
        if undecided(place, trials):
            work(place, trials, arm_configs)
        if undecided(place, trials):
            return None
        places.append(place)
        if len(places) == len(TUNING):
            break
        arms = tuned_arms(study, grid, places)
        wider, notes = widen(grid, arms, lambda values: _problem(study, price, values))
        if wider == grid:
            break
        grid = wider
    return frozen(study, grid, places, notes)


def _problem(study: ScaledStudy, price: Callable[[RunConfig], Priced], values: Values) -> str:
    """Why some arm cannot be run with those of these values that it has; "" if every arm can."""
    for setting in study.settings:
        grid = own_grid(setting.config, {key: (value,) for key, value in values.items()})
        own = {key: value for key, (value,) in grid.items()}
        try:
            price(trial_config(setting, asked(study), own, setting.name))
        except UserError as error:
            return str(error)
    return ""
