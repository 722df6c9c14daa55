"""The trials of a study's tuning, as a study of their own: STUDY/tuning, and what widens its grid.

Each trial is an arm of that study: an arm of the test with the values of one point of the grid, on
the seeds and the order of tune.on. So trials are run, resumed and read as all runs are.
"""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from sparsecl import config as configs
from sparsecl.config_nodes import read_text
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study import pairing
from sparsecl.experiments.study.controls import Priced
from sparsecl.experiments.study.orders import named
from sparsecl.experiments.study.study_file import GIVEN, ScaledStudy, Setting
from sparsecl.experiments.study.study_plan import Arm, Run, StudyPlan
from sparsecl.experiments.study.tune import (
    Grid,
    TuneConfig,
    Tuning,
    Values,
    base_values,
    own_grid,
    points,
    with_values,
)
from sparsecl.files import sha256_text


def trials_plan(
    study: ScaledStudy,
    price: Callable[[RunConfig], Priced],
    grid: Grid,
    *,
    known: Grid | None = None,
    threads: int,
    command: Sequence[str],
) -> tuple[StudyPlan, dict[str, RunConfig]]:
    """The plan of all trials of a grid, and the config of each for the first tuning seed.

    Args:
        price: counts the cost of a config.
        known: a smaller grid whose trials are left out.
        threads: CPU threads of each run.
        command: the command line, for the report.

    Raises:
        UserError: a trial cannot be run as it is asked for.
    """
    tune = asked(study)
    arms, by_name = [], {}
    for setting in study.settings:
        done = points(own_grid(setting.config, known)) if known else []
        for values in points(own_grid(setting.config, grid)):
            if values in done:
                continue
            name = trial_name(setting.name, values)
            config = trial_config(setting, tune, values, name)
            by_name[name] = config
            arms.append(_arm(setting, name, config, values, study, price(config)))
    runs = tuple(
        Run(name=f"{arm.name}/seed{seed}", arm=arm.name, seed=seed)
        for seed in tune.on.seeds
        for arm in arms
    )
    parts = {
        # A study that is changed between tuning and test is another study.
        "study": study_digest(study),
        "analysis": configs.to_dict(study.config.analysis),
        "arms": {name: configs.digest(config) for name, config in by_name.items()},
    }
    plan = StudyPlan(
        name=f"{study.config.name}-tuning",
        question=f"Which {', '.join(grid)} has the best {tune.by}, for each arm?",
        scale=study.scale,
        seeds=tune.on.seeds,
        analysis=replace(
            study.config.analysis,
            reference=arms[0].name,
            metrics=(tune.by,),
            contrasts=(),
            core=None,
            interference=False,
        ),
        arms=tuple(arms),
        runs=runs,
        ds_config=str(study.ds_config),
        threads=threads,
        command=shlex.join(command),
        digest=sha256_text(json.dumps(parts, sort_keys=True)),
    )
    return plan, by_name


def trial_name(arm: str, values: Mapping[str, float]) -> str:
    """ARM.KEY_VALUE, for example dense.optimizer.lr_0.004; it names files."""
    parts = (f"{key}_{json.dumps(value)}".replace("+", "") for key, value in values.items())
    return f"{arm}.{'-'.join(parts)}"


def trial_config(setting: Setting, tune: TuneConfig, values: Values, name: str) -> RunConfig:
    """An arm's config with the values of a trial, on what trials run on."""
    config = with_values(setting.config, values)
    phases = replace(config.phases, order=tune.on.domains)
    return replace(config, phases=phases, seed=tune.on.seeds[0], name=name)


def asked(study: ScaledStudy) -> TuneConfig:
    """The tune block of a study that has one."""
    assert study.config.tune is not None
    return study.config.tune


def tuned_study(study: ScaledStudy, tuning: Tuning) -> ScaledStudy:
    """The study with the frozen values laid over its arms."""
    settings = tuple(
        replace(setting, config=with_values(setting.config, tuning.taken(setting.name)))
        for setting in study.settings
    )
    return replace(study, settings=settings)


def study_digest(study: ScaledStudy) -> str:
    """Of a study with a tune block: known before its tuning, and the same after it."""
    parts = {
        "arms": {setting.name: configs.digest(setting.config) for setting in study.settings},
        "controls": configs.to_dict(study.config.controls),
        **({"probes": configs.to_dict(probes)} if (probes := study.config.probes) else {}),
        **({"orders": configs.to_dict(study.orders)} if study.orders else {}),
        "seeds": list(study.seeds),
        "ds_config": read_text(study.ds_config),
        "tune": configs.to_dict(asked(study)),
    }
    return sha256_text(json.dumps(parts, sort_keys=True))


def check_tune(study: ScaledStudy) -> None:
    """Refuse a tuning that would see the test, or could not be used in it.

    Raises:
        UserError: names the key.
    """
    tune = asked(study)
    for setting in study.settings:
        if setting.link.arms:
            raise UserError(
                f"tune: {setting.name} begins with what a run of {setting.link.arms[0]} has found, "
                "which no trial has. Tune the arms in a study without links and chains, and give "
                "them the values here."
            )
    seen = [seed for seed in tune.on.seeds if seed in study.seeds]
    if seen:
        raise UserError(
            f"tune.on.seeds: {seen[0]} is a seed of the test too, and tuning must not see the "
            f"test (seeds {', '.join(map(str, study.seeds))}). Give others."
        )
    for setting in study.settings:
        names = tuple(domain.name for domain in setting.config.data.domains)
        named(tune.on.domains, names, "tune.on.order")
        tested = (*study.orders.values(),) or (setting.config.phases.order or names,)
        if tune.on.domains in tested:
            raise UserError(
                f"tune.on.order: is an order in which {setting.name} is tested, and tuning must "
                "not see the test. Give another."
            )
    for key in tune.keys:
        _check_key(study, key)
    _check_twins(study, tune)


def _check_key(study: ScaledStudy, key: str) -> None:
    part, _, rest = key.partition(".")
    fixed = (*pairing.SCORED.get(part, ()), *pairing.READ.get(part, ()))
    if key in GIVEN or part == "data" or rest.partition(".")[0] in fixed:
        raise UserError(
            f"tune.keys.{key}: decides what a run reads or is scored on, which is the same for "
            "all arms of a study. Tune another key."
        )
    values = asked(study).keys[key]
    having = [one for one in study.settings if own_grid(one.config, {key: values})]
    if not having:
        with_values(study.settings[0].config, {key: values[0]})
        raise UserError(
            f"tune.keys.{key}: no arm has this method. Give it to an arm, or leave out the key."
        )
    for setting in having:
        for value in values:
            with_values(setting.config, {key: value})
        if base_values(setting.config, [key])[key] is None:
            raise UserError(
                f"tune.keys.{key}: is no number in {setting.name}, and every arm gets the same "
                "trials. Give it one there, or tune another key."
            )


def _check_twins(study: ScaledStudy, tune: TuneConfig) -> None:
    """Arms that differ in nothing but what is tuned would be one arm twice."""
    seen: dict[str, str] = {}
    for setting in study.settings:
        first = points(own_grid(setting.config, tune.keys))[0]
        digest = configs.digest(with_values(setting.config, first))
        twin = seen.setdefault(digest, setting.name)
        if twin != setting.name:
            raise UserError(
                f"tune.keys: {setting.name} differs from {twin} in nothing but "
                f"{', '.join(tune.keys)}, which tuning sets. Leave out the arm, or the key."
            )


def priced_once(
    price: Callable[[RunConfig], Priced], tune: TuneConfig
) -> Callable[[RunConfig], Priced]:
    """`price`, called once for trials that differ in values of the optimizer alone."""
    found: dict[str, Priced] = {}
    free = {key: values[0] for key, values in tune.keys.items() if key.startswith("optimizer.")}

    def priced(config: RunConfig) -> Priced:
        key = configs.digest(replace(with_values(config, free), name="any"))
        if key not in found:
            found[key] = price(config)
        return found[key]

    return priced


def cost(plan: StudyPlan) -> tuple[int, int]:
    """Training tokens and FLOPs (by live weights) of all runs of a plan."""
    arms = [plan.arm(run.arm) for run in plan.runs]
    return sum(a.tokens for a in arms), sum(a.flops for a in arms)


def tuning_text(study: ScaledStudy, trials: StudyPlan, test: StudyPlan) -> str:
    """What tuning will run, beside the test, in a few lines for people."""
    tune = asked(study)
    tokens, flops = cost(trials)
    test_tokens, test_flops = cost(test)
    num_seeds = len(tune.on.seeds)
    counts = [len(points(own_grid(one.config, tune.keys))) for one in study.settings]
    each = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else f"{counts[0]}"
    lines = [
        f"tuning by {tune.by}: {each} trials of each of {len(counts)} arms x {num_seeds} seeds = "
        f"{len(trials.runs)} runs, {tokens:,} tokens, {flops:.3e} FLOPs",
        *(f"  {key}: {', '.join(f'{v:g}' for v in values)}" for key, values in tune.keys.items()),
        f"  seeds {', '.join(map(str, tune.on.seeds))}; order {', '.join(tune.on.domains)}",
        "  a best value at an end of its range: one more value beyond, for every arm, once",
        f"test: {len(test.runs)} runs, {test_tokens:,} tokens, {test_flops:.3e} FLOPs",
    ]
    return "\n".join(lines)


def _arm(
    setting: Setting,
    name: str,
    config: RunConfig,
    values: Values,
    study: ScaledStudy,
    price: Priced,
) -> Arm:
    label = study.config.labels.get(setting.name, setting.name)
    return Arm(
        name=name,
        label=f"{label}, {', '.join(f'{key}={value:g}' for key, value in values.items())}",
        role="trial",
        size=setting.size,
        differences=tuple(f"{key}: {value:g}" for key, value in values.items()),
        stream=pairing.stream(config),
        kind=config.topology.kind,
        density=price.density,
        live=price.live,
        total=price.total,
        flops_per_token=price.flops_per_token,
        gradient_flops=price.gradient_flops,
        score_flops=price.score_flops,
        steps=price.steps,
        tokens=price.tokens,
    )
