"""Runs of this machine's CPU that are forked from a process which has imported everything once.

A start costs seconds, nearly all of them for importing torch and DeepSpeed. A run that is forked
is a process of its own like any other: its own session, log, exit code and end. It computes what a
fresh one computes, bit for bit. CUDA does not survive a fork, so runs on GPUs are started fresh.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsecl.experiments.running.local import PATIENCE, LocalPlace
from sparsecl.experiments.running.runner import Process
from sparsecl.experiments.study.subject import Subject
from sparsecl.files import writing
from sparsecl.opening import make_folder, plain

TICK = 0.02  # seconds between looks at a run that is asked to end
LOST = -int(signal.SIGKILL)  # exit code of the runs of a server that was killed


class WarmProcess:
    """One run that was forked."""

    def __init__(self, server: "Server", pid: int) -> None:
        self._server, self._pid = server, pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None:
            self._code = self._server.ask({"poll": self._pid}, lost=LOST)
        return self._code

    def stop(self) -> None:
        """End it, whatever it takes."""
        for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
            if self.poll() is None:
                os.kill(self._pid, number)
                end = None if patience is None else time.monotonic() + patience
                while self.poll() is None and (end is None or time.monotonic() < end):
                    time.sleep(TICK)


class WarmPlace(LocalPlace):
    """Starts each run as a fork; Linux and the CPU alone.

    Args:
        slots: runs at the same time.
        threads: CPU threads of each; None = each takes what it finds.
        server: the script of the process that they are forked from (programs/_forks.py).
        subject: what the runs are, and so what that process imports.
    """

    def __init__(
        self, *, slots: int, threads: int | None, server: Path, subject: Subject = "text"
    ) -> None:
        super().__init__(slots=slots, threads=threads)
        self._words = (server, subject)
        self._server: Server | None = None

    def start(self, command: Sequence[str], *, log: Path, slot: int) -> Process:
        """Start `python SCRIPT OPTIONS`; what it prints is appended to `log`."""
        with writing(log):
            make_folder(log.parent)
            open(log, "ab", opener=plain).close()  # a log that cannot be is told here
        if self._server is None or not self._server.alive:
            self._server = Server(self._words, self.environment(slot))
        request = {"words": list(command[1:]), "log": str(log.resolve()), "folder": os.getcwd()}
        pid = self._server.ask(request, lost=None)
        if pid is None:
            raise OSError("the process that runs are forked from was killed")
        return WarmProcess(self._server, pid)

    def close(self) -> None:
        """End the server, and with it any run that is left."""
        if self._server is not None:
            self._server.close()


class Server:
    """The process that has imported everything, as its client sees it. It ends with its client,
    and its runs with it."""

    def __init__(self, words: Sequence[Path | str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the runner alone
        )
        self._asked = 0

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.kill()  # it may be importing
        self._process.wait()
        self._process.stdout.close()

    def ask(self, request: dict[str, Any], *, lost: int | None) -> int | None:
        """The answer to one request; `lost` if the server is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if not self.alive:
            return lost
        self._asked += 1
        line = json.dumps({**request, "number": self._asked}).encode() + b"\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
            # A signal may have come between an earlier request and its answer.
            while (answer := self._process.stdout.readline()) != b"":
                number, value = json.loads(answer)
                if number == self._asked:
                    found: int | None = value
                    return found
        except BrokenPipeError:
            pass
        self._process.wait()
        return lost
