"""Folders that one process holds, and who that is."""

import contextlib
import datetime
import fcntl
import json
import os
import re
import socket
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sparsecl.config_nodes import one_line
from sparsecl.errors import CannotCreateError
from sparsecl.files import cannot_write
from sparsecl.opening import NotPlainError, plain

LOCK = ".lock"
MAX_OWNER_BYTES = 4096  # of a lock file; one that is longer names no owner

# Slurm's states of a job of which no process is left. COMPLETING is none of them.
ENDED_JOBS = frozenset(
    "GONE BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED "
    "TIMEOUT".split()
)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a folder, as its lock file says it."""

    host: str
    pid: int
    boot: str = ""
    """Boot id of the kernel: the same host before a reboot is another."""

    start: str = ""
    """When the process began, in clock ticks since the boot: a pid comes again, this does not."""

    job: str = ""
    """SLURM_JOB_ID; empty outside Slurm, as are the next two."""

    restarts: str = ""
    """SLURM_RESTART_COUNT: how often the job was requeued."""

    cluster: str = ""
    """SLURM_CLUSTER_NAME: another cluster counts its jobs by itself."""

    time: str = ""
    """Since when, UTC."""

    def __str__(self) -> str:
        since = f" since {self.time}" if self.time else ""
        job = f" (Slurm job {self.job})" if self.job else ""
        return one_line(f"process {self.pid} on {self.host}{job}{since}")


class FolderLock:
    """A folder held by this process until `close`, or until the process ends."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def close(self) -> None:
        """Say that nobody holds the folder, and let go of it. A second call does nothing."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):  # the folder may be gone, or the disk
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def lock_folder(folder: Path, option: str) -> FolderLock:
    """Make a folder and hold it until the returned object is closed.

    The lock is the kernel's (flock), so it is gone when its owner is, however it died. Not every
    network file system carries it from host to host. So the owner's name stands in the file, and
    a folder that another host left without closing it is taken only if its owner is provably gone.

    Args:
        option: how the user named the folder, for errors.

    Raises:
        CannotCreateError: no permission, no space, or another process holds it or may do so.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = plain(path, os.O_RDWR | os.O_CREAT)
    except NotPlainError as error:
        raise CannotCreateError(
            one_line(f"{option} {folder}: its {path.name} {error.strerror}; remove it")
        ) from None
    except OSError as error:
        raise cannot_write(folder, error, option) from None
    try:
        _take(handle, path, f"{option} {folder}")
    except BaseException:
        os.close(handle)
        raise
    return FolderLock(handle)


def _take(handle: int, path: Path, what: str) -> None:
    """Lock an open file and write this process into it, or raise CannotCreateError."""
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = False
        except BlockingIOError:
            held = True
        text = os.pread(handle, MAX_OWNER_BYTES, 0).decode("utf-8", "replace").strip("\0 \r\n")
        owner = _parse_owner(text)
        name = str(owner) if owner else one_line(text[:80]) or "another process"
        if held:
            raise CannotCreateError(
                one_line(f"{what}: in use by {name}. Wait for it, or use another folder.")
            )
        if text:
            doubt = "its lock file names no owner" if owner is None else _may_live(owner)
            if doubt:
                raise CannotCreateError(
                    one_line(f"{what}: may be in use by {name}: {doubt}. Remove {path} if it is ")
                    + "gone, or use another folder."
                )
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(this_process())).encode() + b"\n", 0)
        os.fsync(handle)
    except OSError as error:
        raise CannotCreateError(
            one_line(f"{what}: cannot be locked ({error.strerror}); use another folder")
        ) from None


def this_process() -> Owner:
    """This process as the owner of a folder."""
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=_boot_id(),
        start=_start_time(os.getpid()),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restarts=os.environ.get("SLURM_RESTART_COUNT", ""),
        cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _parse_owner(text: str) -> Owner | None:
    """The owner that a lock file names; None if it names none in a form that is known."""
    old = re.fullmatch(r"process (\d{1,9}) on (\S{1,255})", text)  # as earlier versions wrote it
    if old:
        return Owner(host=old[2], pid=int(old[1]))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    names = {field.name for field in fields(Owner)}
    if not isinstance(found, dict) or found.keys() != names or type(found["pid"]) is not int:
        return None
    pid = found.pop("pid")
    if not all(isinstance(value, str) and len(value) <= 255 for value in found.values()):
        return None
    return Owner(pid=pid, **found) if 0 < pid < 2**31 else None


def _may_live(owner: Owner) -> str:
    """Why an owner that holds no flock here may still be at work; "" if it is provably gone."""
    here = this_process()
    if owner.boot == here.boot != "" or owner.host == here.host:
        # The same kernel knows all flocks of its processes; after a reboot none of them is left.
        same_boot = not owner.boot or owner.boot == here.boot
        same_process = owner.start and owner.start == _start_time(owner.pid)
        if same_boot and same_process and owner.pid != here.pid:
            return "that process is alive, though the file system knows no lock of it"
        return ""
    if not owner.job:
        return f"it is on another host than this one ({here.host}), and not of a Slurm job"
    if owner.cluster != here.cluster:
        return f"it is of another cluster ({owner.cluster or 'unnamed'})"
    if owner.job == here.job:
        return ""  # a requeue: Slurm ends all of a job before it starts it again
    state = _job_state(owner.job)
    return "" if state in ENDED_JOBS else f"its Slurm job is {state or 'in an unknown state'}"


def _job_state(job: str) -> str:
    """State of a Slurm job, "GONE" if Slurm does not know it any more, "" if it cannot be asked."""
    if not re.fullmatch(r"\d{1,12}", job):
        return ""
    try:
        done = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    if done.returncode != 0:
        return "GONE" if "Invalid job id" in done.stderr else ""
    states = set(done.stdout.split())
    alive = states - ENDED_JOBS
    return min(alive) if alive else "GONE"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return ""


def _start_time(pid: int) -> str:
    """Start of a process in clock ticks since the boot; "" if there is none, or not on Linux."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The name of the program stands in brackets and may hold anything: count from the last one.
    return text.rpartition(")")[2].split()[19]
