"""Runs as processes of this machine."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sparsecl.experiments.running.runner import Process
from sparsecl.files import writing
from sparsecl.opening import make_folder, plain

PATIENCE = 10.0  # seconds that a process gets to leave by itself
PR_SET_PDEATHSIG = 1  # prctl(2)


class LocalProcess:
    """One run that was started."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """End it, whatever it takes."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


class LocalPlace:
    """Starts each run as one process; with GPUs, each slot has one of them.

    Args:
        slots: runs at the same time.
        threads: CPU threads of each; None = each takes what it finds.
        gpus: of this process, as `visible_gpus` names them; none = the CPU.
    """

    def __init__(self, *, slots: int, threads: int | None, gpus: Sequence[str] = ()) -> None:
        self.slots = slots
        self._threads = threads
        self._gpus = gpus

    def start(self, command: Sequence[str], *, log: Path, slot: int) -> Process:
        """Start a command; what it prints is appended to `log`."""
        with writing(log):
            make_folder(log.parent)
            output = open(log, "ab", opener=plain)
        with output as file:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment(slot),
                # Ctrl-C reaches the runner alone, which then ends its runs one by one.
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid())
                if sys.platform == "linux"
                else None,
            )
        return LocalProcess(process)

    def close(self) -> None:
        """Nothing stays of it."""

    def environment(self, slot: int) -> dict[str, str]:
        """Variables of a run in this slot."""
        # A launcher's variables would make the run wait for ranks that do not exist.
        foreign = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        kept = {key: value for key, value in os.environ.items() if key not in foreign}
        if self._threads:
            kept["OMP_NUM_THREADS"] = str(self._threads)
        kept["PYTHONUNBUFFERED"] = "1"
        if self._gpus:
            kept["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return kept


def visible_gpus(count: int) -> list[str]:
    """The GPUs that CUDA shows to this process, as CUDA_VISIBLE_DEVICES names them: an index, a
    UUID or a MIG instance. A batch system may have given it only some of the machine's.

    Args:
        count: how many CUDA shows (torch.cuda.device_count()).
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = [str(index) for index in range(count)] if names is None else names.split(",")
    return [name.strip() for name in listed][:count]


def die_with_parent(parent: int) -> None:
    """In the child: a runner that is killed takes its runs along, so that none goes on unseen."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
