"""The first minutes on a GPU: section by section, each in a process of its own, with a limit.

A section that fails, hangs or dies is recorded and the others go on. The record is a JSON file that
is written after every section; a later call does only what is not "ok" there, as long as machine
and code are the same. What the sections do is in gpu_sections.py.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsecl.benchmarks import process
from sparsecl.checkout import PACKAGE
from sparsecl.errors import DataError, UserError
from sparsecl.files import atomic_open, write_json
from sparsecl.opening import read_plain

MODULE = "sparsecl.benchmarks.gpu_sections"


@dataclass(frozen=True)
class Section:
    """One piece of the check."""

    name: str
    seconds: float
    """After so long it is ended; what it has found until then is kept."""

    text: str


# The limits add up to more than eight minutes: they are for what goes wrong.
SECTIONS = (
    Section("environment", 60, "driver, compiler, versions, kernel of attention"),
    Section("tests", 120, "the tests that need a GPU"),
    Section("losses", 150, "ZeRO 0-3 x masked, packed, block: losses beside those of the CPU"),
    Section("repeat", 150, "killed and resumed against not: the same bits"),
    Section("waits", 60, "a micro-batch in which the host may not wait for the device"),
    Section("nccl", 60, "collectives of every type in use, in a world of one"),
    Section("compile", 180, "compiled blocks: losses beside those of plain ones; their graphs"),
    Section("speed", 180, "tokens/s of 124M and 1.3B, micro-batches of 8 and 32"),
)


def check(
    folder: Path,
    *,
    device: str,
    names: Sequence[str],
    minutes: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run the sections of `names` that are not done, and write check.json and check.txt.

    Args:
        folder: of the record; made if it is not there.
        device: "cuda", or "cpu", where the sections run on tiny models.
        minutes: no section is begun after them; the next call goes on.

    Returns:
        The record.

    Raises:
        UserError: there is no such device.
        DataError: check.json is not a record of this program.
    """
    machine = identity(device)
    found = {**_read(folder / "check.json", machine), "machine": machine}
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * minutes
    for section in SECTIONS:
        before = found["sections"].get(section.name, {})
        if section.name not in names or before.get("state") == "ok":
            continue
        if time.monotonic() >= end:
            found["sections"].setdefault(section.name, {"state": "not begun", "rows": []})
            continue
        say(f"{section.name}: {section.text}")
        found["sections"][section.name] = run(section, device)
        _write(folder, found)
    _write(folder, found)
    return found


def identity(device: str) -> dict[str, Any]:
    """What a record holds for: device, versions and commit.

    Raises:
        UserError: there is no such device.
    """
    process.choose_device(device)
    import torch

    from sparsecl.engine.resume.environment import environment

    known = environment()
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    kept = ("versions", "cuda", "commit", "changed_files")
    # Through JSON, so that it equals what was written.
    return json.loads(json.dumps({"device": name, **{key: known[key] for key in kept}}))


def _read(path: Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The record so far, if it is of this machine and code."""
    if not path.exists():
        return {"sections": {}}
    try:
        found = json.loads(read_plain(path))
        before, sections = found["machine"], found["sections"]
        as_text({"machine": before, "sections": sections})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: no record of this program; give another --out") from None
    return {"sections": sections if before == machine else {}}


def run(section: Section, device: str) -> dict[str, Any]:
    """One section in its process: state, seconds and rows; its last words if it failed."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        with open(Path(folder) / "log", "w+", encoding="utf-8", errors="replace") as log:
            code = _wait(_start(section.name, device, rows, log), section.seconds)
            log.seek(0)
            words = log.read().splitlines()
        lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    problems = [row["problem"] for row in found if "problem" in row]
    if code is None:
        problems.append(f"ended after {section.seconds:g} s")
    elif code:
        problems.append(f"exit code {code}: {words[-1] if words else 'no output'}")
    return {
        "state": "failed" if problems else "ok",
        "seconds": round(time.monotonic() - begin, 1),
        "problems": problems,
        "rows": found,
        "log": words[-40:] if problems else [],
    }


def _start(name: str, device: str, rows: Path, log: Any) -> "subprocess.Popen[bytes]":
    paths = [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", MODULE, name, device, str(rows)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    return subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )


def _wait(child: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """Its exit code; None if it had to be ended, with all that it has started."""
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also at Ctrl-C
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()


def _write(folder: Path, found: Mapping[str, Any]) -> None:
    write_json(folder / "check.json", found)
    with atomic_open(folder / "check.txt") as file:
        file.write(as_text(found) + "\n")


def as_text(found: Mapping[str, Any]) -> str:
    """The record as a person reads it."""
    lines = [f"{found['machine']['device']}, commit {found['machine']['commit']}"]
    for section in SECTIONS:
        record = found["sections"].get(section.name, {"state": "not asked for", "rows": []})
        took = f"{record['seconds']:g} s" if "seconds" in record else ""
        lines += ["", f"{section.name:<13}{record['state']:<15}{took:<10}{section.text}"]
        lines += [f"  {_line(row)}" for row in record["rows"]]
        lines += [f"  problem: {problem}" for problem in record.get("problems", ())]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,.6g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in row.items()
        if name != "problem"
    )


def failed(found: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Sections of `names` that are not "ok"."""
    return [name for name in names if found["sections"][name]["state"] != "ok"]


def chosen(given: Sequence[str] | None) -> list[str]:
    """Names of sections, all if none are given.

    Raises:
        UserError: there is no such section.
    """
    known = [section.name for section in SECTIONS]
    for name in given or ():
        if name not in known:
            raise UserError(f"--sections {name}: there are {', '.join(known)}")
    return list(given or known)
