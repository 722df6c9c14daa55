"""Writes study folders without training: every run has a loss matrix that the test has chosen."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsecl.experiments.study.study_plan import (
    AnalysisConfig,
    Arm,
    Role,
    Run,
    StudyPlan,
    arm_config,
    failure_file,
    run_folder,
    write_plan,
)
from sparsecl.files import write_json
from sparsecl.metrics.interference import (
    INTERFERENCE,
    DensityResult,
    GradientResult,
    Interference,
    InterferenceSettings,
    SingleWeightResult,
    StructureResult,
    UpdateResult,
    summary_means,
    write_interference,
)
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from tests.metrics.fake_run import (
    STEPS,
    TOKENS_PER_STEP,
    from_matrix,
    header,
    with_identity,
    write_lines,
)

DOMAINS = ("code", "math", "legal")


@dataclass(frozen=True, kw_only=True)
class FakeArm:
    """How an arm behaves. Losses in nats per token."""

    name: str
    label: str = ""
    role: Role = "arm"
    of: str | None = None
    kind: str = "er_fixed"
    density: float = 0.1
    level: float = 3.0
    """Loss of a domain right after its training."""
    forgets: float = 0.5
    """Rise of an earlier domain's loss in each later phase."""
    drift: float = 0.0
    """Change of `level` from one phase to the next."""
    noise: float = 0.01
    """Spread of each score over seeds, beside what a seed adds to all arms alike."""
    stopped: int | None = None
    """Optimizer steps in the first phase, where they are not STEPS."""
    methods: dict[str, Any] = field(default_factory=dict)
    """Of its run config, configs/NAME.yaml."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Changes of the header of its records."""
    interference: bool = False
    """Write an interference.json of cosine `forgets` between any two domains."""
    differences: tuple[str, ...] | None = None
    """In place of that of the topology alone."""
    levels: dict[str, str] = field(default_factory=dict)
    told: float | None = None
    """Losses where methods are told the domain, as a multiple of those where they are not."""
    plasticity: bool = False
    """Write a plasticity panel whose rank falls by 1 in each phase, from 100 * density."""
    moves: float | None = None
    """Write records of drift: KL of each earlier domain at every phase end; None = no records."""

    after: int | None = None
    """Probes: they train the last domain alone."""

    measures: dict[str, dict[str, float]] = field(default_factory=dict)
    """What methods measure of themselves at the end of the last phase."""


def loss_matrix(arm: FakeArm, order: Sequence[int], num_domains: int, seed: int) -> np.ndarray:
    """[P + 1, D]: `level` right after training, `forgets` more after each later phase."""
    shared = np.random.default_rng([seed, 1])
    own = np.random.default_rng([seed, zlib.crc32(arm.name.encode())])
    loss = np.full((len(order) + 1, num_domains), 8.0) + shared.normal(0, 0.2)
    for phase, index in enumerate(order):
        loss[phase + 1] = loss[phase] + arm.forgets * (loss[phase] < 7.0)
        if index < 0:
            loss[phase + 1] = arm.level
        else:
            loss[phase + 1, index] = arm.level + arm.drift * phase
    noise = shared.normal(0, 0.05, loss.shape) + own.normal(0, arm.noise, loss.shape)
    return loss + noise


def run_records(arm: FakeArm, order: Sequence[int], domains: Sequence[str], seed: int) -> list[Any]:
    """The records of one finished run; between phase ends one evaluation half way."""
    loss = loss_matrix(arm, order, len(domains), seed)
    records = from_matrix(loss.tolist(), domains, order)
    config = {"seed": seed, "topology": arm.kind, "density": arm.density}
    changes = {
        "name": f"{arm.name}-seed{seed}",
        "config": config,
        "density": {"masked": arm.density, "model": arm.density},
        "digests": {"data": f"data{seed}", "tokenizer": "tok"},
        **arm.extra,
    }
    records[0] = header(domains, order, **changes)
    if arm.told is not None:
        records = with_identity(records, arm.told)
    if arm.plasticity:
        records = with_panels(records, arm, len(domains))
    if arm.moves is not None:
        records = with_drift(records, arm.moves, domains, order, seed)
    if arm.measures:
        place = {key: records[-1][key] for key in ("phase", "step", "tokens")}
        end = {"kind": "phase", "event": "end", "methods": arm.measures}
        records = [*records, {**end, **place}]
    for record in records[1:]:
        if arm.stopped is not None and record["step"]:
            record["step"] += arm.stopped - STEPS
            record["tokens"] = record["step"] * TOKENS_PER_STEP
    tokens = records[-1]["tokens"]
    return [*records, {"kind": "end", "seconds": tokens / 9000, "tokens_per_second": 9000.0}]


def with_drift(
    records: list[Any], moves: float, domains: Sequence[str], order: Sequence[int], seed: int
) -> list[Any]:
    """One record of kind "drift" after the scores of each phase that had another domain before; a
    seed has a factor of its own."""
    made, kl = [], moves * (1 + 0.02 * (seed % 5))
    for record, following in zip(records, [*records[1:], {}], strict=True):
        made.append(record)
        phase = record.get("phase", -1)
        if phase == following.get("phase") or phase < 0 or record["kind"] != "eval":
            continue
        earlier = [domains[i] for i in dict.fromkeys(order[:phase]) if i not in (order[phase], -1)]
        if earlier:
            place = {key: record[key] for key in ("phase", "step", "tokens")}
            found = {
                "kl": dict.fromkeys(earlier, kl),
                "standard_error": dict.fromkeys(earlier, kl / 20),
                "num_tokens": dict.fromkeys(earlier, 1024),
            }
            made.append({"kind": "drift", **place, **found})
    return made


def with_panels(records: list[Any], arm: FakeArm, num_domains: int) -> list[Any]:
    """One record of kind "plasticity" after the scores of each row of the matrix."""
    made = records[:1]
    for row, at in enumerate(range(1, len(records), num_domains)):
        made += records[at : at + num_domains]
        rank = 100 * arm.density - row
        panel = {
            "kind": "plasticity",
            "phase": row - 1,
            "at": "phase_end" if row else "start",
            "step": made[-1]["step"],
            "tokens": made[-1]["tokens"],
            "layers": {"layers.0": {"erank": rank}, "layers.1": {"erank": rank + 2}},
            "final": {"erank": 2 * rank},
            "total": {"weight_mean_abs": 0.1, "p": None},
        }
        made.append(panel)
    return made


def fake_interference(arm: FakeArm, domains: Sequence[str], seed: int) -> Interference:
    size = len(domains)
    matrix = tuple(tuple(1.0 if i == j else arm.forgets for i in range(size)) for j in range(size))
    names = ("cosine", "cosine_all_parameters", "dot", "dot_per_live_weight", "overlap_top10")
    gradients = GradientResult(
        norm=(1.0,) * size, overlap_by_chance=0.05, **dict.fromkeys(names, matrix)
    )
    update = UpdateResult(
        eps=1e-3, loss=(3.0,) * size, loss_change=matrix, predicted=matrix, kl=matrix
    )
    return Interference(
        run=arm.name,
        checkpoint="step-300",
        digest="d",
        seed=seed,
        settings=InterferenceSettings(),
        domains=tuple(domains),
        num_tokens=(100,) * size,
        density=DensityResult(masked=arm.density, model=arm.density, num_live=10),
        structure=StructureResult(
            num_matrices=2,
            paths_per_weight_log10=1.0,
            paths_ratio_to_dense_log10=-1.0,
            rho_power=0.1,
            share_of_own_paths_log10=-2.0,
            share_of_own_paths_dense_log10=-3.0,
            without_path=0.0,
            reach=(0.5, 1.0),
            reach_without_residual=(0.2, 0.9),
        ),
        gradients=gradients,
        update=update,
        single_weight=SingleWeightResult(logits=0.9, hidden=0.8, num_weights=16),
        means=summary_means(gradients, update),
    )


def write_study(
    folder: Path,
    arms: Sequence[FakeArm],
    *,
    seeds: Sequence[int] = tuple(range(8)),
    order: Sequence[int] = (0, 1, 2),
    domains: Sequence[str] = DOMAINS,
    analysis: AnalysisConfig | None = None,
    failed: Mapping[tuple[str, int], str] | None = None,
    missing: Sequence[tuple[str, int]] = (),
    begun: Sequence[tuple[str, int]] = (),
    **changes: Any,
) -> Path:
    """Write plan.json and a run folder for each arm and seed; returns the folder.

    Args:
        failed: (arm, seed) -> reason.
        missing, begun: (arm, seed) of runs that were not started, or have not ended.
        changes: fields of the plan.
    """
    failed = failed or {}
    plan = study_plan(arms, seeds, len(order), analysis or AnalysisConfig(), **changes)
    write_plan(folder, plan)
    (folder / "configs").mkdir()
    for arm in arms:
        config = {"topology": {"kind": arm.kind}, "methods": arm.methods}
        arm_config(folder, arm.name).write_text(json.dumps(config))  # JSON is YAML
        for run in plan.runs_of(arm.name):
            key, place = (run.arm, run.seed), run_folder(folder, run)
            if key in failed:
                write_json(failure_file(folder, run), {"reason": failed[key], "code": 1})
            if key in failed or key in missing:
                continue
            place.mkdir(parents=True)
            own = [domains.index(name) for name in plan.orders.get(run.order, ())] or order
            alone = {"joint": (-1,), "probe": (len(domains) - 1,)}
            plan_order = alone.get(arm.role, own)
            records = run_records(arm, plan_order, domains, run.seed)
            write_lines(place / "scalars.jsonl", records[:-4] if key in begun else records)
            if key not in begun:
                write_json(place / "results.json", summarize(read_records(place)))
                write_json(place / "environment.json", ENVIRONMENT)
            if arm.interference:
                found = fake_interference(arm, domains, run.seed)
                write_interference(place / INTERFERENCE, found)
    return folder


ENVIRONMENT = {"commit": "0123abcd", "versions": {"torch": "2.13.0", "numpy": "2.3.1"}}


def study_plan(
    arms: Sequence[FakeArm],
    seeds: Sequence[int],
    num_phases: int,
    analysis: AnalysisConfig,
    **changes: Any,
) -> StudyPlan:
    plan = StudyPlan(
        name="fake",
        question="Does a fixed sparse topology forget less?",
        scale="tiny",
        seeds=tuple(seeds),
        analysis=analysis,
        arms=tuple(_arm(arm, num_phases, arms[0]) for arm in arms),
        runs=tuple(
            Run(
                name=f"{arm.name}/{order}{'-' if order else ''}seed{seed}",
                arm=arm.name,
                seed=seed,
                order=order,
                needs=_needs(arm, seed),
            )
            for seed in seeds
            for order in changes.get("orders") or ("",)
            for arm in arms
        ),
        ds_config="ds_configs/zero2.json",
        threads=1,
        command="python launch/study.py --config studies/fake.yaml",
        digest="f" * 64,
    )
    return replace(plan, **changes)


def _needs(arm: FakeArm, seed: int) -> str | None:
    return f"{arm.of}/seed{seed}" if arm.role == "stopped_early" else None


def _arm(arm: FakeArm, num_phases: int, first: FakeArm) -> Arm:
    kind, live = f"topology.kind: {first.kind} -> {arm.kind}", round(1_000_000 * arm.density)
    return Arm(
        name=arm.name,
        label=arm.label or arm.name,
        role=arm.role,
        of=arm.of,
        after=arm.after,
        levels=arm.levels,
        differences=(
            arm.differences if arm.differences is not None else () if arm is first else (kind,)
        ),
        kind=arm.kind,
        density=arm.density,
        live=live,
        total=1_000_000,
        flops_per_token=6 * live,
        steps=STEPS * num_phases,
        tokens=STEPS * num_phases * TOKENS_PER_STEP,
    )


def scores(folder: Path) -> tuple[list[int], np.ndarray]:
    """Order and loss matrix of a run, straight from the lines of its scalars.jsonl."""
    lines = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    run, rows = lines[0], {}
    for line in lines:
        if line["kind"] == "eval" and line["at"] in ("start", "phase_end"):
            row = rows.setdefault(0 if line["at"] == "start" else line["phase"] + 1, {})
            row[line["domain"]] = line["loss_sum"] / line["num_tokens"]
    return run["order"], np.array([[rows[k][d] for d in run["domains"]] for k in sorted(rows)])


def last_forgetting(folder: Path) -> float:
    """F_last of a run whose order trains each domain once, written out by hand."""
    order, loss = scores(folder)
    rises = [loss[-1, i] - loss[phase + 1, i] for phase, i in enumerate(order[:-1])]
    return float(np.mean(rises))
