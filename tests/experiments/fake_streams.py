"""Writes the folder of a study of streams without training: its curves are the test's."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sparsecl.experiments.study.study_plan import (
    AnalysisConfig,
    Arm,
    Run,
    StudyPlan,
    failure_file,
    run_folder,
    write_plan,
)
from sparsecl.files import write_json
from tests.metrics.fake_run import write_lines

PANEL = ("dead", "dormant", "erank", "stable_rank_F", "srank99", "weight_mean_abs")


def arm(name: str, tasks: int, **changes) -> Arm:
    given = {"label": name, "kind": "dense", "density": 1.0, "live": 100, "total": 100}
    given |= {"flops_per_token": 0, "steps": 20 * tasks, "tokens": 20 * tasks}
    return Arm(name=name, **{**given, **changes})


def make_plan(names: Sequence[str], seeds: Sequence[int], tasks: int, **analysis) -> StudyPlan:
    given = {"reference": names[0], "metrics": ("last_third", "lost"), "margins": {}}
    return StudyPlan(
        name="fake", question="", scale="base", seeds=tuple(seeds),
        analysis=AnalysisConfig(**{**given, **analysis}),
        arms=tuple(arm(name, tasks) for name in names),
        runs=tuple(Run(name=f"{n}/seeds", arm=n, seed=seeds[0], seeds=tuple(seeds)) for n in names),
        ds_config="", threads=1, command="python launch/sweep.py fake.yaml", digest="d",
        subject="stream",
    )  # fmt: skip


def write_run(
    folder: Path,
    plan: StudyPlan,
    run: Run,
    accuracy: Callable[[int, int], float],
    panel: Callable[[int, int], float],
    *,
    done: bool = True,
) -> None:
    """The records of a run.

    Args:
        accuracy: (seed, task) -> online accuracy; p(Z) is half of it, change_erank ten times.
        panel: (seed, tasks learned) -> every figure of the panel.
    """
    tasks = plan.arm(run.arm).steps // 20
    header = {"kind": "stream", "name": run.arm, "stream": "permuted_mnist", "tasks": tasks}
    header |= {"seeds": list(run.seeds), "samples_per_task": 20, "methods": {}, "parameters": {}}
    lines = [{**header, "data": {}, "config": {}}]
    for task in range(tasks + 1 if done else tasks // 2):
        for seed in run.seeds:
            figures = {name: panel(seed, task) for name in PANEL}
            place = {"seed": seed, "task": task}
            lines.append({"kind": "before", **place, "accuracy_before": 0.1, **figures})
            if task < tasks:
                a = accuracy(seed, task)
                online = {"online_accuracy": a, "p": a / 2, "p_unclamped": a / 2}
                online |= {"change_erank": 10 * a}
                lines.append({"kind": "task", **place, **online})
    place = run_folder(folder, run)
    place.mkdir(parents=True)
    if done:
        lines.append({"kind": "end", "audit": {}, "seconds": 1.0})
        write_json(place / "results.json", {})
    write_lines(place / "scalars.jsonl", lines)


def write_study(folder: Path, plan: StudyPlan) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(folder, plan)
    return folder


def write_failure(folder: Path, run: Run, reason: str) -> None:
    path = failure_file(folder, run)
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"exit_code": 1, "reason": reason, "log": ""})
