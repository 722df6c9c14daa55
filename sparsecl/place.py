"""The place of this process among the ranks, as its launcher gave it; before torch is imported.

Every launcher sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Here they are
checked; ranks of this machine are seen in /proc, before they have come to the meeting place; and
it is noticed if the launcher is gone. Where there is no /proc, nobody is seen and nothing noticed.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from sparsecl.errors import UserError

PROC = Path("/proc")

_WAYS = (
    "Start it with `deepspeed launch/train.py ...`, or in Slurm `bash slurm/train.sbatch -- ...`."
)
# The number of processes, as launchers say it that set no RANK.
_TASKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_MEETING = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")


def rank() -> int:
    """World rank; 0 without a launcher. Checked by `check`."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes; 1 without a launcher. Checked by `check`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check(variables: Mapping[str, str] = os.environ) -> None:
    """Raise UserError unless the launcher's variables give this process a place, or it is alone."""
    if "RANK" not in variables and "WORLD_SIZE" not in variables:
        _check_alone(variables)
        return
    world = _number(variables, "WORLD_SIZE", least=1)
    place = _number(variables, "RANK")
    if place >= world:
        raise UserError(f"RANK={place}: must be below WORLD_SIZE={world}. {_WAYS}")
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if name in variables:
            _number(variables, name, least=int(name != "LOCAL_RANK"))
    if world > 1:
        _number(variables, "MASTER_PORT", least=1, most=65535)
        if not variables.get("MASTER_ADDR"):
            raise UserError(f"MASTER_ADDR is not set, but WORLD_SIZE={world}. {_WAYS}")


def local_rank(variables: Mapping[str, str] = os.environ) -> int:
    """Which of this machine's GPUs is this rank's; UserError if one of several does not know."""
    if int(variables.get("WORLD_SIZE", "1")) == 1 and "LOCAL_RANK" not in variables:
        return 0
    return _number(variables, "LOCAL_RANK")


def _number(
    variables: Mapping[str, str], name: str, *, least: int = 0, most: int = 2**31 - 1
) -> int:
    text = variables.get(name)
    if text is None:
        others = " and ".join(
            f"{n}={variables[n]}" for n in ("RANK", "WORLD_SIZE") if n in variables
        )
        raise UserError(f"{name} is not set, but {others}. {_WAYS}")
    if not (text.isascii() and text.isdigit()) or not least <= int(text[:20]) <= most:
        span = f"a number from {least}" + (f" to {most}" if most < 2**31 - 1 else "")
        raise UserError(f"{name}={text}: must be {span}. {_WAYS}")
    return int(text)


def _check_alone(variables: Mapping[str, str]) -> None:
    """Raise UserError for one of several tasks: each would be a whole run of its own."""
    sizes = {name: variables.get(name, "") for name in _TASKS}
    if "SLURM_STEP_ID" in variables or "SLURM_STEPID" in variables:
        # srun counts its own tasks; the shell of an interactive allocation is a step of one.
        name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_NTASKS"
        sizes[name] = variables.get(name, "")
    for name, text in sizes.items():
        if text.isdigit() and int(text) > 1:
            raise UserError(
                f"{name}={text} without RANK and WORLD_SIZE: each of these processes would train "
                f"alone. {_WAYS}"
            )


# ---- who is there ------------------------------------------------------------------------------


class Siblings:
    """The other ranks of this run on this machine, by what /proc shows of their processes.

    A rank is gone if it was seen and no process with its variables is left. One that ended before
    anybody looked cannot be told from one that has not begun.
    """

    def __init__(self, variables: Mapping[str, str] = os.environ) -> None:
        self._me = variables.get("RANK")
        self._meeting = {(name, variables.get(name)) for name in _MEETING}
        self._seen: set[int] = set()

    def look(self) -> list[int]:
        """Look once. Returns the ranks that are gone."""
        if self._me is None:
            return []
        try:
            there = {self._rank_of(path) for path in PROC.iterdir() if path.name.isdigit()}
        except OSError:  # too many open files, no /proc: nothing has been seen
            return []
        self._seen |= there
        return sorted(self._seen - there - {-1})

    def _rank_of(self, folder: Path) -> int:
        """Its rank if it is another rank of this run, else -1."""
        try:
            if _parent(folder) is None:
                return -1
            words = (folder / "environ").read_bytes().split(b"\0")
        except (PermissionError, *_GONE):
            return -1
        pairs = (os.fsdecode(word).partition("=") for word in words)
        found = {name: value for name, _, value in pairs}
        text = found.get("RANK", "")
        mine = self._meeting <= found.items() and text != self._me and text.isdigit()
        return int(text) if mine else -1


_GONE = (FileNotFoundError, ProcessLookupError)


def _parent(folder: Path) -> int | None:
    """The parent of a process of /proc; None if it has ended and waits to be counted."""
    # The name, in brackets, may hold anything.
    words = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return None if words[0] in "ZX" else int(words[1])


# ---- the launcher ------------------------------------------------------------------------------


class Launcher:
    """The processes above this one, if DeepSpeed's launcher started it.

    `deepspeed` starts a process on each machine, which starts the ranks. A signal to `deepspeed`
    ends it alone: the other goes on under another parent.
    """

    def __init__(self) -> None:
        # Set by that launcher only. Any other parent may be a shell, which may leave.
        self._above = _above() if "CROSS_SIZE" in os.environ else None

    def is_gone(self) -> bool:
        """True once one of them has ended."""
        found = _above() if self._above else None
        return found is not None and found != self._above


def _above() -> tuple[int, int] | None:
    """(parent, its parent); None if that cannot be seen."""
    parent = os.getppid()
    try:
        return parent, _parent(PROC / str(parent)) or 0
    except OSError:
        return None


# ---- both, from the first line of a script on --------------------------------------------------


class _State:
    siblings: Siblings | None = None
    launcher: Launcher | None = None


def begin() -> None:
    """Look around for the first time. Before slow imports, in which a rank may be lost."""
    _State.siblings, _State.launcher = Siblings(), Launcher()
    _State.siblings.look()


def lost_siblings() -> list[int]:
    """Ranks of this machine that were there at `begin` or at a later call, and are gone."""
    if _State.siblings is None:
        begin()
    return _State.siblings.look() if _State.siblings else []


def is_orphan() -> bool:
    """True if the launcher that started this rank has ended since `begin`."""
    return _State.launcher is not None and _State.launcher.is_gone()
