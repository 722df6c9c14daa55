"""From a study at one of its sizes to a plan: arms, controls, runs, and what sets them apart."""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from sparsecl import config as configs
from sparsecl.config_nodes import read_text
from sparsecl.engine.run_config import RunConfig
from sparsecl.errors import UserError
from sparsecl.experiments.study import pairing
from sparsecl.experiments.study.chain import LinkConfig, link_lines, linked_run, stand_in
from sparsecl.experiments.study.controls import Control, Priced, controls, own_references
from sparsecl.experiments.study.measures import BY_SUBJECT
from sparsecl.experiments.study.probes import with_probes
from sparsecl.experiments.study.study_file import ScaledStudy, Setting
from sparsecl.experiments.study.study_plan import (
    PARTS,
    PLAN,
    TUNING,
    Arm,
    Run,
    StudyPlan,
    arm_config,
    check_study,
    read_plan,
    write_plan,
)
from sparsecl.experiments.study.trials import check_tune, study_digest, tuned_study
from sparsecl.experiments.study.tune import Tuning
from sparsecl.files import atomic_open, remove_leftovers, sha256_text, writing
from sparsecl.metrics.significance import reach
from sparsecl.opening import make_folder

NOT_SET_APART = ("name:", "checkpoint.initial:", "checkpoint.keep_steps")
"""Keys that a study sets in its arms, and that change nothing that is computed."""


def make_plan(
    study: ScaledStudy,
    price: Callable[[RunConfig], Priced],
    *,
    threads: int,
    command: Sequence[str],
    tuning: Tuning | None = None,
) -> tuple[StudyPlan, dict[str, RunConfig]]:
    """The plan, and the config of every arm for the first seed.

    Args:
        price: checks a config and counts its cost; called once for each arm, and more often for
            narrower models.
        threads: CPU threads of each run.
        command: the command line, for the report.
        tuning: of a study that asks for it; its values are laid over the arms, and so over the
            controls made of them. None = the arms as they are before it.

    Raises:
        UserError: what is wrong with the study, before any work.
    """
    price = _priced_once(price)
    digest, tune = None, study.config.tune
    if tune is not None:
        check_tune(study)
        digest = study_digest(study)
        study = study if tuning is None else tuned_study(study, tuning)
        tuning = tuning or Tuning(config=tune, keys=tune.keys)
    settings = [_first(setting, study) for setting in study.settings]
    analysis = study.config.analysis
    made = list(controls(study.config.controls, settings, analysis.reference, price))
    if study.config.probes is not None:
        settings, probes = with_probes(study.config.probes, settings, study.orders, price)
        made += probes
    all_of_them = [*settings, *(control.setting for control in made)]
    references = own_references(settings, analysis.reference)
    for setting in settings:
        pairing.check_scored(setting.name, setting.config, references[setting.size].config)
    roles = {control.setting.name: control for control in made}
    arms = tuple(
        _arm(
            setting,
            references[setting.size],
            roles.get(setting.name),
            study,
            price(setting.config),
        )
        for setting in all_of_them
    )
    by_name = {setting.name: setting.config for setting in all_of_them}
    links = {s.name: s.link for s in all_of_them if s.link.arms}
    _check_seeds(links, study.seeds)
    plan = StudyPlan(
        name=study.config.name,
        question=study.config.question,
        scale=study.scale,
        seeds=study.seeds,
        analysis=analysis,
        arms=arms,
        runs=tuple(_linked(_runs(arms, roles, study), links, by_name, study.seeds)),
        orders=study.orders,
        ds_config=str(study.ds_config),
        threads=threads,
        command=shlex.join(command),
        digest=digest or _digest(by_name, links, study),
        tuning=tuning,
    )
    _check_analysis(plan, by_name)
    pairing.check_contrasts(plan, by_name)
    return plan, by_name


def open_study(folder: Path, plan: StudyPlan, arm_configs: Mapping[str, object]) -> StudyPlan:
    """Write a new study folder, or find the same study in an old one; it is locked.

    Returns:
        The plan to go on with: that of the folder, if there is one.

    Raises:
        UserError: if the folder holds another study.
        CannotCreateError, StorageError: if it cannot be written.
    """
    assert plan.tuning is None or plan.tuning.arms, "a study is opened when it is tuned"
    check_study(folder, plan)
    if plan.tuning is None and (folder / TUNING[0] / PLAN).exists():
        raise UserError(
            f"--study_dir {folder}: holds another study (its tune block is gone). Give another "
            "folder, or go on with the study as it was."
        )
    remove_leftovers(folder)
    for part in PARTS:
        with writing(folder / part):
            make_folder(folder / part)
        remove_leftovers(folder / part)
    if (folder / PLAN).exists():
        return same_study(folder, plan)
    for name, config in arm_configs.items():
        with atomic_open(arm_config(folder, name)) as file:
            file.write(configs.dump(config))
    write_plan(folder, plan)  # last: a folder with a plan is complete
    return plan


def same_study(folder: Path, plan: StudyPlan) -> StudyPlan:
    """The plan to go on with in a folder that has one.

    Raises:
        UserError: it is the plan of another study.
    """
    old = read_plan(folder)
    if old.digest != plan.digest:
        before, now = ({arm.name for arm in p.arms} for p in (old, plan))
        changes = [
            *(f"arm {name} is gone" for name in sorted(before - now)),
            *(f"arm {name} is new" for name in sorted(now - before)),
            *([f"seeds {old.seeds} -> {plan.seeds}"] if old.seeds != plan.seeds else []),
            *(["other orders of domains"] if old.orders != plan.orders else []),
            *_tune_changes(old.tuning, plan.tuning),
        ]
        differ = "the study that is tuned differs" if old.is_tuning else "the run configs differ"
        what = "; ".join(changes) or differ
        raise UserError(
            f"--study_dir {folder}: holds another study ({what}). Give another folder, or go on "
            "with the study as it was."
        )
    if old.analysis != plan.analysis:
        changes = configs.differences(*(configs.to_dict(p.analysis) for p in (old, plan)))
        raise UserError(
            f"--study_dir {folder}: was planned with another analysis ({changes[0]}), and what is "
            "compared is fixed before the runs begin. Give another folder, or go on as it was."
        )
    if old.threads != plan.threads:
        raise UserError(
            f"--threads {plan.threads}: the study was begun with {old.threads}, and another number "
            f"rounds differently. Use --threads {old.threads}, or another --study_dir."
        )
    return replace(plan, command=old.command)


def _tune_changes(old: Tuning | None, new: Tuning | None) -> list[str]:
    if old is None or new is None:
        return ["its tune block is new"] if new is not None else []
    before, now = ({"tune": configs.to_dict(one.config)} for one in (old, new))
    return configs.differences(before, now)


def _first(setting: Setting, study: ScaledStudy) -> Setting:
    """The arm as it is run with the first seed, in the first order."""
    config = replace(setting.config, seed=study.seeds[0], name=setting.name)
    for order in list(study.orders.values())[:1]:
        config = replace(config, phases=replace(config.phases, order=order))
    return replace(setting, config=config)


def _arm(
    setting: Setting, reference: Setting, control: Control | None, study: ScaledStudy, cost: Priced
) -> Arm:
    lines = configs.differences(configs.to_dict(reference.config), configs.to_dict(setting.config))
    if control is not None and control.needs_losses:
        lines.append(f"phases.until_loss: null -> the losses of {control.of} after each phase")
    lines += link_lines(setting.link)
    label = study.config.labels.get(setting.name, setting.name)
    role, belongs = (control.role, control.of) if control else (setting.role, setting.of)
    if belongs is not None and setting.name not in study.config.labels:
        of = study.config.labels.get(belongs, belongs)
        rest = setting.name.removeprefix(f"{belongs}.").replace("_", " ").replace(".", " ")
        label = f"{of}: {rest}"
    return Arm(
        name=setting.name,
        label=label,
        role=role,
        of=belongs,
        after=None if control is None else control.after,
        size=setting.size,
        levels=setting.levels,
        differences=tuple(line for line in lines if not line.startswith(NOT_SET_APART)),
        stream=pairing.stream(setting.config),
        kind=setting.config.topology.kind,
        density=cost.density,
        live=cost.live,
        total=cost.total,
        flops_per_token=cost.flops_per_token,
        gradient_flops=cost.gradient_flops,
        score_flops=cost.score_flops,
        steps=cost.steps,
        tokens=cost.tokens,
    )


def _runs(arms: Sequence[Arm], roles: dict[str, Control], study: ScaledStudy) -> list[Run]:
    """Seed by seed, and order by order: a study that is stopped half-way has whole pairs."""
    runs = []
    for seed, order in product(study.seeds, study.orders or ("",)):
        for arm in arms:
            own = arm.role == "alone"  # one domain has no order
            if own and order != next(iter(study.orders), ""):
                continue
            run = Run(name="", arm=arm.name, seed=seed, order="" if own else order)
            control = roles.get(arm.name)
            needs = f"{arm.of}/{run.place}" if control and control.needs_losses else None
            runs.append(replace(run, name=f"{arm.name}/{run.place}", needs=needs))
    return runs


def _linked(
    runs: Sequence[Run],
    links: Mapping[str, LinkConfig],
    by_name: Mapping[str, RunConfig],
    seeds: Sequence[int],
) -> Iterator[Run]:
    """The runs, each with the names of those that it takes its topology and weights from."""
    names = {(run.arm, run.seed, run.order): run.name for run in runs}
    for run in runs:
        if run.arm not in links:
            yield run
            continue
        # A domain by itself has no order; it takes from the runs of the first.
        order = run.order or next((r.order for r in runs if r.order), "")
        yield linked_run(
            run,
            links[run.arm],
            by_name[run.arm],
            seeds,
            lambda arm, seed, order=order: names[arm, seed, order],
        )


def _check_seeds(links: Mapping[str, LinkConfig], seeds: Sequence[int]) -> None:
    for name, link in links.items():
        if link.other_seed and len(seeds) < 2:
            raise UserError(
                f"links.{name}.other_seed: the study has one seed; give it two or more, or leave "
                "out this arm (the control reinit of a chain)"
            )


def _priced_once(price: Callable[[RunConfig], Priced]) -> Callable[[RunConfig], Priced]:
    """`price`, called once for arms that differ in their names alone; an arm whose topology follows
    from runs that are not done is counted by a stand-in."""
    known: dict[str, Priced] = {}

    def priced(config: RunConfig) -> Priced:
        key = configs.digest(replace(config, name="any"))
        if key not in known:
            known[key] = price(stand_in(config))
        return known[key]

    return priced


def _check_analysis(plan: StudyPlan, by_name: Mapping[str, RunConfig]) -> None:
    """Names in the analysis that are not there."""
    domains = [domain.name for domain in by_name[plan.analysis.reference].data.domains]
    if plan.analysis.core not in (None, *domains):
        raise UserError(
            f"analysis.core: there is no domain {plan.analysis.core}; there are "
            f"{', '.join(domains)}"
        )
    check_compared(plan)


def check_compared(plan: StudyPlan) -> None:
    """Refuse measures and arms of the analysis that are not there.

    Raises:
        UserError: with what there is.
    """
    names, measures = [arm.name for arm in plan.arms], BY_SUBJECT[plan.subject]
    for name in (*plan.analysis.metrics, *plan.analysis.margins):
        if name not in measures:
            raise UserError(
                f"analysis: there is no measure {name}; there are {', '.join(measures)}"
            )
    for contrast in plan.analysis.contrasts:
        for name in (contrast.arm, contrast.against):
            if name not in names:
                raise UserError(
                    f"analysis.contrasts: there is no arm {name}; there are {', '.join(names)}"
                )


def _digest(
    by_name: dict[str, RunConfig], links: Mapping[str, LinkConfig], study: ScaledStudy
) -> str:
    parts = {
        "arms": {name: configs.digest(config) for name, config in by_name.items()},
        **({"orders": configs.to_dict(study.orders)} if study.orders else {}),
        **({"links": configs.to_dict(links)} if links else {}),
        "seeds": list(study.seeds),
        "ds_config": read_text(study.ds_config),
    }
    return sha256_text(json.dumps(parts, sort_keys=True))


def plan_text(plan: StudyPlan) -> str:
    """What will run, as a table for people."""
    left = max(3, *(len(arm.name) for arm in plan.arms))
    lines = [
        f"{plan.name} ({plan.scale}): {len(plan.arms)} arms x {len(plan.seeds)} seeds"
        f"{f' x {len(plan.orders)} orders' if plan.orders else ''} = {len(plan.runs)} runs",
        "",
        f"{'arm':<{left}}  {'density':>8} {'live':>13} {'FLOPs/token':>12} {'tokens':>14} "
        f"{'steps':>7} {'tokens/live':>11}",
    ]
    lines += [
        f"{arm.name:<{left}}  {arm.density:>8.4f} {arm.live:>13,} {arm.flops_per_token:>12.3e} "
        f"{arm.tokens:>14,} {arm.steps:>7,} {arm.tokens / max(1, arm.live):>11.3g}"
        for arm in plan.arms
    ]
    tokens = sum(plan.arm(run.arm).tokens for run in plan.runs)
    work = sum(plan.arm(run.arm).flops for run in plan.runs)
    lines.append(f"{'in all':<{left}}  {'':>8} {'':>13} {work:>12.3e} {tokens:>14,}")
    lines.append("(in all: FLOPs and tokens of all runs; FLOPs by live weights)")
    return "\n".join([*lines, *contrasts_text(plan)])


def contrasts_text(plan: StudyPlan) -> list[str]:
    """Lines that say what is compared, and whether the seeds can show it."""
    planned, alpha = plan.contrasts(), plan.analysis.alpha
    if not planned:
        return []
    metric = plan.analysis.metrics[0]
    lines = ["", f"planned contrasts on {metric} (Holm over {len(planned)}):"]
    lines += [f"  {line}" for line in pairing.contrast_lines(plan)]
    paired = any(map(plan.paired, planned))
    sizes = (len(plan.seeds),) if paired else (len(plan.seeds),) * 2
    short = reach(*sizes, alpha=alpha, num_contrasts=len(planned))
    return [*lines, *([f"  note: {short}"] if short else [])]
