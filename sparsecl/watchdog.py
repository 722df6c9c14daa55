"""A thread that ends a process which no longer gets anywhere, and says where it stood.

The loop calls `beat` at everything it begins. If no beat comes for too long, the watchdog prints
this rank's last beat, what is known of the other ranks, and the stacks of all threads, and ends the
process with code 76. It must end it hard: the main thread sits in a collective that never returns.

How long is too long: `seconds`, or 10 times the longest time between two beats so far, whichever is
more, so that a large model on a slow machine needs no setting. Until the first step of the process
was applied, whatever comes before it, `seconds` count 10 times: kernels are compiled and tuned, and
ranks connected, at their first use, after a resume too.

Ranks learn of each other through the store that the process group was made with; a rank whose
watchdog has stopped writing there is stopped or dead, one that is behind is what the others wait
for. What is known to take long, such as a save, is waited for only while all ranks write on. Rank 0
keeps the store: if its process is stopped, a question to it has no end, so another thread asks. A
process that is itself stopped (SIGSTOP, a suspended job) finds out when it goes on, because its own
thread has not run either, and starts counting anew.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from sparsecl.errors import PeerLostError

LOOKS = 6  # polls between two looks at the other ranks
ANSWER_SECONDS = 10.0  # that rank 0 has for an answer
_CLOSED = "the end"  # where a rank is whose watchdog does not write any more
GRACE = 10.0  # times the longest time between two beats; times `seconds` at the start


class NoticeBoard(Protocol):
    """Where ranks leave a line for the others."""

    def post(self, line: str) -> None:
        """Replace this rank's line."""

    def lines(self) -> dict[int, str]:
        """The lines of all ranks that have left one."""
        ...


class Watchdog:
    """Watches this process from `start` to `close`."""

    def __init__(
        self, seconds: float, *, rank: int = 0, board: NoticeBoard | None = None, poll: float = 1.0
    ) -> None:
        """Args:
        seconds: patience, see above.
        board: None = alone.
        poll: seconds between two looks.
        """
        self.seconds, self.rank, self.board = seconds, rank, board
        self.poll = min(poll, seconds / 4)
        self.place = "start"
        self._last = time.monotonic()
        self._longest = seconds  # so that the first step has GRACE times `seconds`
        self._warm = False
        self._patient = 0.0
        self._posts = 0
        self._heard: dict[int, tuple[str, float]] = {}  # the line of a rank, and since when
        self._question: threading.Thread | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        global _current
        _current = self
        self._post(0.0)  # so that a rank which is stopped at once is known to have been there
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        global _current
        _current = None
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        self.place = _CLOSED
        self._post(0.0)

    def beat(self, place: str) -> None:
        """The process has come to `place`."""
        now = time.monotonic()
        if not self._patient:
            self._longest = max(self._longest, now - self._last)
        self.place, self._last = place, now

    def warm(self) -> None:
        """A step was applied."""
        if not self._warm:
            # What the first one took says nothing of those that follow.
            self._warm, self._longest, self._last = True, 0.0, time.monotonic()

    @contextlib.contextmanager
    def patient(self, place: str, seconds: float) -> Iterator[None]:
        """Allow `seconds` for something that is known to take long."""
        self.beat(place)
        self._heard, self._patient = {}, seconds
        try:
            yield
        finally:
            self._last, self._patient = time.monotonic(), 0.0

    @property
    def allowed(self) -> float:
        """Seconds without a beat after which the process is ended."""
        return max(self._usual, self._patient)

    @property
    def _usual(self) -> float:
        return max(self.seconds, GRACE * self._longest)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._end.wait(self.poll):
            now = time.monotonic()
            if now - looked > 5 * self.poll + 1.0:  # this whole process was stopped
                self._last = now
            looked = now
            silent = now - self._last
            self._post(silent)
            if silent > self.allowed:
                self._bite(silent)
            elif silent > self._usual:
                if self._is_one_mute():
                    self._bite(silent)
                looked = min(time.monotonic(), now + ANSWER_SECONDS)  # to ask takes so long

    def _is_one_mute(self) -> bool:
        """True if a rank has not written for the usual time, or rank 0 not answered for so long."""
        if self.board is None:
            return False
        heard, lines, now = self._heard, self._ask() or {}, time.monotonic()
        heard.setdefault(0, ("", now))
        for rank, line in lines.items():
            if heard.get(rank, ("", 0.0))[0] != line:
                heard[rank] = (line, now)
        since = [at for line, at in heard.values() if not line.endswith(_CLOSED)]
        return any(now - at > self._usual for at in since)

    def _ask(self) -> dict[int, str] | None:
        """The lines of all ranks; None if rank 0 is gone, or has not answered in time."""
        board, found = self.board, list[dict[int, str]]()
        if board is None or self._is_open():
            return None

        def work() -> None:
            with contextlib.suppress(Exception):
                found.append(board.lines())

        self._question = threading.Thread(target=work, name="watchdog's question", daemon=True)
        self._question.start()
        self._question.join(ANSWER_SECONDS)
        return found[0] if found else None

    def _is_open(self) -> bool:
        """A question has no answer yet: whoever writes or asks until then waits for it, too."""
        return self._question is not None and self._question.is_alive()

    def _post(self, silent: float) -> None:
        self._posts += 1
        if self.board is not None and not self._is_open():
            with contextlib.suppress(Exception):  # rank 0, which keeps the store, may be gone
                self.board.post(f"{self._posts} {silent:.0f} {self.place}")

    def _bite(self, silent: float) -> None:
        said = [f"sparsecl: rank {self.rank}: nothing has happened for {silent:.0f} s"]
        said += [
            f"since: {self.place}",
            *self._others(silent),
            "stacks of all threads of this rank:",
        ]
        print("\n  ".join(said), file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        if self.board is not None and self.rank == 0:
            self._stay(silent)  # the store that the others are about to read ends with rank 0
        os._exit(PeerLostError.exit_code)

    def _stay(self, silent: float) -> None:
        """Let some time pass, visibly for the others."""
        for _ in range(LOOKS):
            time.sleep(self.poll)
            self._post(silent)

    def _others(self, silent: float) -> list[str]:
        """What the other ranks do, from two looks at their lines."""
        if self.board is None:
            return []
        before = self._ask()
        self._stay(silent)
        after = None if before is None else self._ask()
        if before is None or after is None:
            return [
                "the other ranks cannot be asked: rank 0, which they write to, is stopped or gone"
            ]
        said = []
        for rank, line in sorted(after.items()):
            if rank != self.rank:
                _, age, place = line.split(" ", 2)
                mute = before.get(rank) == line
                state = "does not run (stopped or dead)" if mute else f"silent for {age} s"
                said.append(f"rank {rank}: {state}, since: {place}")
        return said


_current: Watchdog | None = None


def beat(place: str) -> None:
    """Tell the watchdog of this process, if there is one, that it has come to `place`."""
    if _current is not None:
        _current.beat(place)


def warm() -> None:
    """Tell the watchdog of this process, if there is one, that a step was applied."""
    if _current is not None:
        _current.warm()


@contextlib.contextmanager
def patient(place: str, seconds: float) -> Iterator[None]:
    """Allow `seconds` for something that is known to take long."""
    if _current is None:
        yield
        return
    with _current.patient(place, seconds):
        yield
