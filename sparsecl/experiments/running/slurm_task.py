"""What a Slurm job of a study asks and tells; the scripts of slurm/ call it.

python -m sparsecl.experiments.running.slurm_task begin STUDY INDEX
python -m sparsecl.experiments.running.slurm_task failed STUDY INDEX EXIT_CODE
python -m sparsecl.experiments.running.slurm_task table STUDY
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sparsecl import command
from sparsecl.errors import UserError
from sparsecl.experiments.findings.collect import collect, status_of
from sparsecl.experiments.findings.study_table import study_table
from sparsecl.experiments.running.runner import run_options, why_ended
from sparsecl.experiments.study.study_plan import (
    Run,
    check_study,
    failure_file,
    log_file,
    read_plan,
)
from sparsecl.files import write_json


def begin(folder: Path, run: Run) -> list[str]:
    """Log, CPU threads and options of launch/train.py for a run; nothing if the run is done.

    Raises:
        UserError: it cannot be run; the study folder says so, too.
    """
    plan = read_plan(folder)
    check_study(folder, plan)  # the shell that appends to the log would follow a link
    failure_file(folder, run).unlink(missing_ok=True)
    if status_of(folder, run)[0] == "done":
        return []
    log = log_file(folder, run)
    needed = [other for other in plan.runs if other.name in run.waits_for]
    try:
        for other in needed:
            if status_of(folder, other)[0] != "done":
                raise UserError(f"needs {other.name}, which is not done")
        return [str(log), str(plan.threads), *run_options(folder, plan, run)]
    except UserError as error:
        _write_failure(folder, run, None, str(error))
        raise


def failed(folder: Path, run: Run, code: int) -> None:
    """Write down how the last attempt of a run has ended."""
    _write_failure(folder, run, code, why_ended(code, log_file(folder, run)))


def _write_failure(folder: Path, run: Run, code: int | None, reason: str) -> None:
    value = {"exit_code": code, "reason": reason, "log": str(log_file(Path(), run))}
    write_json(failure_file(folder, run), value)


def table(folder: Path) -> bool:
    """Print the table. Returns True if every run is done."""
    study = collect(folder)
    print(study_table(study), flush=True)
    return study.counts()["done"] == len(study.results)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code; 1 from `table` if a run is not done."""
    return command.report(lambda: work(arguments))


def work(arguments: Sequence[str]) -> int:
    """Do what the verb says. Returns the exit code."""
    verb, folder = arguments[0], Path(arguments[1])
    if verb == "table":
        return 0 if table(folder) else 1
    run = read_plan(folder).runs[int(arguments[2])]
    if verb == "begin":
        words = begin(folder, run)
        sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in words))
    else:
        failed(folder, run, int(arguments[3]))
    return 0


if __name__ == "__main__":
    command.start(lambda: main(sys.argv[1:]))
