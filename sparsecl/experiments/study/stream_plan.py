"""From a study of streams at one of its sizes to a plan: arms, controls, one run for each."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace

from sparsecl import config as configs
from sparsecl.errors import UserError
from sparsecl.experiments.study.build_plan import check_compared, contrasts_text
from sparsecl.experiments.study.controls import SPARSE, Sized
from sparsecl.experiments.study.narrow import narrower
from sparsecl.experiments.study.stream_study import StreamStudy
from sparsecl.experiments.study.study_plan import Arm, Run, StudyPlan
from sparsecl.files import sha256_text
from sparsecl.streams.config import StreamRunConfig


def make_stream_plan(
    study: StreamStudy,
    size: Callable[[StreamRunConfig], Sized],
    *,
    threads: int,
    command: Sequence[str],
) -> tuple[StudyPlan, dict[str, StreamRunConfig]]:
    """The plan, and the config of every run by arm.

    Args:
        size: checks a config and counts what its networks have.
        threads: CPU threads of each run.
        command: the command line, for the report.

    Raises:
        UserError: what is wrong with the study, before any work.
    """
    analysis, named = study.config.analysis, study.arms
    if analysis.reference not in named:
        raise UserError(
            f"analysis.reference: there is no arm {analysis.reference}; name one of the arms: "
            f"{', '.join(named)}"
        )
    made, of = dict(named), dict[str, str]()
    for arm in _asked(study):
        control = f"{arm}.equal_parameters"
        narrow = narrower(arm, named[arm], named[analysis.reference], size)
        made[control], of[control] = replace(narrow, name=control), arm
    plan = StudyPlan(
        name=study.config.name,
        question=study.config.question,
        scale=study.scale,
        seeds=study.seeds,
        analysis=analysis,
        arms=tuple(_arm(name, config, study, of, size(config)) for name, config in made.items()),
        runs=tuple(
            Run(name=f"{name}/seeds", arm=name, seed=study.seeds[0], seeds=study.seeds)
            for name in made
        ),
        ds_config="",
        threads=threads,
        command=shlex.join(command),
        digest=sha256_text(json.dumps({n: configs.digest(c) for n, c in made.items()})),
        subject="stream",
    )
    check_compared(plan)
    _check_pairs(plan, made)
    return plan, made


def _asked(study: StreamStudy) -> list[str]:
    """The arms that get a control, in the order of the study."""
    asked, named = study.config.controls.equal_parameters, study.arms
    for name in asked:
        if name != SPARSE and name not in named:
            raise UserError(
                f"controls.equal_parameters: there is no arm {name}; there are {', '.join(named)}, "
                f"and {SPARSE} for all that are not dense"
            )
    sparse = [n for n, c in named.items() if SPARSE in asked and c.topology.kind != "dense"]
    return [name for name in named if name in asked or name in sparse]


def _arm(
    name: str, config: StreamRunConfig, study: StreamStudy, of: dict[str, str], size: Sized
) -> Arm:
    reference = study.arms[study.config.analysis.reference]
    old, new = (configs.to_dict(replace(one, name="any")) for one in (reference, config))
    labels = study.config.labels
    label = labels.get(name, name)
    if name in of:
        label = f"dense, as small as {labels.get(of[name], of[name])}"
    return Arm(
        name=name,
        label=label,
        role="equal_parameters" if name in of else "arm",
        of=of.get(name),
        differences=tuple(configs.differences(old, new)),
        stream=configs.digest([configs.to_dict(config.stream), config.panel.samples]),
        kind=config.topology.kind,
        density=size.density,
        live=size.live,
        total=size.total,
        flops_per_token=0,
        steps=config.stream.tasks * config.stream.steps_per_task,
        tokens=config.stream.tasks * config.stream.samples_per_task,
    )


def _check_pairs(plan: StudyPlan, made: dict[str, StreamRunConfig]) -> None:
    """Refuse a planned contrast of arms whose networks see other tasks, unless it says so."""
    for contrast in plan.contrasts():
        if contrast.unpaired or plan.paired(contrast):
            continue
        one, two = (made[name] for name in (contrast.arm, contrast.against))
        old, new = (
            {"stream": configs.to_dict(c.stream), "panel": {"samples": c.panel.samples}}
            for c in (two, one)
        )
        raise UserError(
            f"analysis.contrasts: {contrast.arm} minus {contrast.against} is no contrast of pairs, "
            f"for networks of one seed see other tasks ({configs.differences(old, new)[0]}). Give "
            "both arms the same, or state the contrast with unpaired: true."
        )


def stream_plan_text(plan: StudyPlan) -> str:
    """What will run, as a table for people."""
    left = max(6, *(len(arm.name) for arm in plan.arms))
    lines = [
        f"{plan.name} ({plan.scale}): {len(plan.runs)} arms, {len(plan.seeds)} seeds each",
        "",
        f"{'arm':<{left}}  {'density':>8} {'live':>11} {'samples':>11} {'steps':>11}",
    ]
    lines += [
        f"{arm.name:<{left}}  {arm.density:>8.4f} {arm.live:>11,} {arm.tokens:>11,} "
        f"{arm.steps:>11,}"
        for arm in plan.arms
    ]
    lines += [
        "(density: of hidden layers; live: weights and biases of a network that are there;",
        "samples, steps: of a network)",
    ]
    return "\n".join([*lines, *contrasts_text(plan)])
