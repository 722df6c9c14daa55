"""Runs as tasks of Slurm job arrays: submits what is missing, and asks where the rest stands.

All state is in the study folder and in Slurm's queue, so nothing has to stay up on the login node:
the same command, given again, shows where things are and submits what is neither done nor queued.
STUDY/slurm/ holds the scripts with the site settings they were submitted with, jobs.json with the
numbers of the arrays, and the output of the jobs. A task's index is its run's place in plan.json.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparsecl.config_nodes import one_line
from sparsecl.errors import DataError, UserError
from sparsecl.experiments.findings.collect import status_of
from sparsecl.experiments.study.study_plan import Run, StudyPlan, failure_file
from sparsecl.files import atomic_open, write_json, writing
from sparsecl.opening import make_folder, read_plain

Standing = Literal["done", "running", "queued", "failed", "begun", "missing"]
STANDINGS: tuple[Standing, ...] = ("done", "running", "queued", "failed", "begun", "missing")

SCRIPTS = ("job.sh", "rank", "sweep.sbatch", "report.sbatch", "site.env")
PATIENCE = 120.0  # seconds for an answer of Slurm's controller
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}

# Prints the options of sbatch that follow from site.env, each ended by a zero byte.
OPTIONS = """
set -euo pipefail
ROOT=$1
source "$ROOT/slurm/job.sh"
kind=$2
take_words "${@:3}"
site_options "$kind"
printf '%s\\0' "${OPTIONS[@]}"
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job to submit."""

    options: tuple[str, ...]
    """Of sbatch; those that name other jobs are added when these have numbers."""

    after: tuple[str, ...]
    """Jobs that must have ended: numbers of those in the queue, and "JOB1" for the first of those
    that are submitted together, and so on."""

    script: str
    """File name in STUDY/slurm."""

    words: tuple[str, ...]
    """Arguments of the script."""

    runs: tuple[str, ...]
    """Names of the runs it does; empty for the report."""


class SlurmPlace:
    """A cluster, as the project's slurm/site.env describes it.

    Args:
        root: the project's folder.
        limit: tasks of one array at the same time; None = as many as the cluster lets.
        site: settings NAME=VALUE over those of site.env.
    """

    def __init__(self, root: Path, *, limit: int | None = None, site: Sequence[str] = ()) -> None:
        self._root, self._limit, self._site = root, limit, tuple(site)

    def jobs(
        self, folder: Path, plan: StudyPlan, runs: Sequence[Run], queued: Iterable[str]
    ) -> list[Job]:
        """What `submit` would submit for these runs: arrays, and the report after them.

        Runs that need others come in arrays of their own, after all that may do these: one for
        each link of a chain.

        Args:
            queued: numbers of the arrays of this study that are in the queue.

        Raises:
            UserError: a setting of the site is not what it must be.
        """
        folder = folder.resolve()
        jobs: list[Job] = []
        waiting = tuple(sorted(set(queued)))
        ranks: dict[int, list[Run]] = {}
        for run in runs:
            ranks.setdefault(plan.rank(run), []).append(run)
        for rank, some in sorted(ranks.items()):
            after = (*waiting, *_numbers(jobs)) if rank else ()
            jobs.append(self._array(folder, plan, some, after=after))
        interference = ("interference",) if plan.analysis.interference else ()
        report = Job(
            options=(
                *self._site_options("report"),
                f"--job-name={job_name(plan)}-report",
                f"--output={_pattern(folder)}/slurm/%j.report.out",
            ),
            after=(*waiting, *_numbers(jobs)),
            script="report.sbatch",
            words=(str(self._root), str(folder), *interference),
            runs=(),
        )
        return [*jobs, report]

    def _array(
        self, folder: Path, plan: StudyPlan, runs: Sequence[Run], *, after: tuple[str, ...]
    ) -> Job:
        places = [index for index, run in enumerate(plan.runs) if run in runs]
        limit = f"%{self._limit}" if self._limit else ""
        return Job(
            options=(
                *self._site_options("study"),
                f"--job-name={job_name(plan)}",
                f"--output={_pattern(folder)}/slurm/%A_%a.out",
                f"--array={_ranges(places)}{limit}",
            ),
            after=after,
            script="sweep.sbatch",
            words=(str(self._root), str(folder)),
            runs=tuple(plan.runs[index].name for index in places),
        )

    def _site_options(self, kind: str) -> tuple[str, ...]:
        words = ["bash", "-c", OPTIONS, "bash", str(self._root), kind, *self._site, "--"]
        done = subprocess.run(words, capture_output=True, env=_environment())
        if done.returncode != 0:
            text = done.stderr.decode("utf-8", "replace").strip().removeprefix("sparsecl: ")
            raise UserError(one_line(f"slurm/site.env: {text}"))
        return tuple(os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1])

    def submit(self, folder: Path, plan: StudyPlan, runs: Sequence[Run]) -> list[str]:
        """Submit these runs and a report after all runs that are queued; returns lines to show.

        Raises:
            UserError: sbatch is not there or refuses.
            CannotCreateError, StorageError: the study folder cannot be written.
        """
        known = _read_jobs(folder)
        jobs = self.jobs(folder, plan, runs, (array for array, _ in queue(folder)))
        self._write_scripts(folder)
        for run in runs:
            failure_file(folder, run).unlink(missing_ok=True)
        if known["report"]:  # one report, after everything
            with contextlib.suppress(UserError):  # Slurm may know it no more
                _ask("scancel", "--state=PENDING", known["report"])
        numbers: dict[str, str] = {}
        lines = []
        for name, job in zip(_numbers(jobs), jobs, strict=True):
            after = [numbers.get(other, other) for other in job.after]
            number = _ask(*command(folder, job, after)).strip().split(";")[0]
            if not re.fullmatch(r"\d+", number):
                raise UserError(one_line(f"sbatch: answered {number!r}, which is no job's number"))
            numbers[name] = number
            if job.runs:
                known["arrays"].append(number)
            else:
                known["report"] = number
            # At once: a job whose number is not known would be submitted again.
            write_json(folder / "slurm" / "jobs.json", known)
            what = f"{len(job.runs)} runs: {', '.join(job.runs)}" if job.runs else "the report"
            lines.append(f"submitted job {number}, {what}")
        return lines

    def _write_scripts(self, folder: Path) -> None:
        """Into STUDY/slurm, with the settings of this submission."""
        added = "".join(f"{name}={shlex.quote(value)}\n" for name, _, value in self._settings())
        with writing(folder / "slurm"):
            make_folder(folder / "slurm")
        for name in SCRIPTS:
            text = (self._root / "slurm" / name).read_text(encoding="utf-8")
            with atomic_open(folder / "slurm" / name) as file:
                file.write(text + (added if name == "site.env" else ""))

    def _settings(self) -> list[tuple[str, str, str]]:
        return [word.partition("=") for word in self._site]


def job_name(plan: StudyPlan) -> str:
    """For people who look at the queue. Names of studies are letters, digits, _ - and dots."""
    return f"{plan.name}-{plan.scale}-{plan.digest[:8]}"


def command(folder: Path, job: Job, after: Sequence[str]) -> list[str]:
    """The words of sbatch for a job that waits for the jobs `after`."""
    dependency = [f"--dependency=afterany:{':'.join(after)}"] if after else []
    script = str(folder.resolve() / "slurm" / job.script)
    return ["sbatch", "--parsable", *job.options, *dependency, script, *job.words]


def preview(folder: Path, jobs: Sequence[Job]) -> str:
    """The commands of `submit`, to read."""
    return "\n".join(shlex.join(command(folder, job, job.after)) for job in jobs)


def _numbers(jobs: Sequence[Job]) -> tuple[str, ...]:
    """How jobs are called before they have a number: JOB1, JOB2, ..."""
    return tuple(f"JOB{place + 1}" for place in range(len(jobs)))


def queue(folder: Path) -> dict[tuple[str, int], str]:
    """The tasks of this study that Slurm still has: (array, index) -> state.

    Raises:
        UserError: if Slurm cannot be asked; to guess would mean to start runs twice.
    """
    arrays = _read_jobs(folder)["arrays"]
    if not arrays:
        return {}
    found = {}
    for line in _ask("squeue", "--noheader", "--array", "--format=%F %K %T").splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in arrays and words[1].isdigit():
            found[words[0], int(words[1])] = words[2]
    return found


def standings(
    folder: Path, plan: StudyPlan, queued: Mapping[tuple[str, int], str]
) -> dict[str, Standing]:
    """Where each run stands, by its folder and the queue."""
    by_index: dict[int, str] = {index: state for (_, index), state in queued.items()}
    found: dict[str, Standing] = {}
    for index, run in enumerate(plan.runs):
        status, _ = status_of(folder, run)
        if status != "done" and index in by_index:
            found[run.name] = "running" if by_index[index] in RUNNING else "queued"
        else:
            found[run.name] = status
    return found


def standing_text(folder: Path, plan: StudyPlan, found: Mapping[str, Standing]) -> str:
    """Counts, and a line for each run that is at work or has failed."""
    values = list(found.values())
    lines = [", ".join(f"{values.count(n)} {n}" for n in STANDINGS) + f" of {len(found)} runs"]
    for run in plan.runs:
        where = found[run.name]
        if where in ("running", "queued", "begun"):
            lines.append(f"  {where:<8} {run.name}")
        elif where == "failed":
            lines.append(f"  failed   {run.name}: {status_of(folder, run)[1]}")
    return "\n".join(lines)


def missing(plan: StudyPlan, found: Mapping[str, Standing]) -> list[Run]:
    """Runs that are neither done nor in the queue; what failed is among them."""
    return [run for run in plan.runs if found[run.name] in ("failed", "begun", "missing")]


def _read_jobs(folder: Path) -> dict[str, Any]:
    path = folder / "slurm" / "jobs.json"
    if not path.exists():
        return {"arrays": [], "report": ""}
    try:
        found = json.loads(read_plain(path))
        numbers = [*found["arrays"], *([found["report"]] if found["report"] else [])]
        if all(re.fullmatch(r"\d{1,12}", number) for number in numbers):
            return {"arrays": list(found["arrays"]), "report": found["report"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DataError(
        one_line(
            f"{path}: is not what was written there. If no job of this study is in the queue, "
            "remove it."
        )
    )


def _ask(*words: str) -> str:
    """Output of a command of Slurm."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=PATIENCE, env=_environment()
        )
    except FileNotFoundError:
        raise UserError(
            f"--where slurm: there is no {words[0]} here. Start this where jobs are submitted."
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]}: no answer within {PATIENCE:g} s") from None
    if done.returncode != 0:
        raise UserError(one_line(f"{words[0]}: {done.stderr.strip() or done.returncode}"))
    return done.stdout


def _environment() -> dict[str, str]:
    """Without what describes the job that this process may itself be in: it would be inherited."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    foreign = ("SLURM_", "SLURMD_", "SBATCH_", "RANK", "WORLD_SIZE", "LOCAL_", "OMP_NUM_THREADS")
    return {
        key: value
        for key, value in os.environ.items()
        if key in kept or not key.startswith(foreign)
    }


def _pattern(folder: Path) -> str:
    """The name of a folder where Slurm replaces %j and the like, and reads \\ as an escape."""
    if "\\" in str(folder):
        raise UserError(one_line(f"--study_dir {folder}: Slurm cannot write to a name with \\"))
    return str(folder).replace("%", "%%")


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][-1:] = [number] if len(parts[-1]) > 1 else [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
