"""Signals that ask a process to stop, heard from its first line to its last.

`listen` comes first in a script, before slow imports. From then on the first signal is noted, and
answered as `answer_by` says; later ones change nothing. So a process that is on its way out ends
with the code that it has chosen.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType

from sparsecl.errors import Preempted

# Batch systems: Slurm sends SIGUSR1 before the time limit, SIGTERM at a preemption. SIGHUP: the
# terminal or the connection is gone.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

Answer = Callable[[str], None]
"""Is given the signal's name, within the handler: it may raise."""


class _State:
    received = 0
    answer: Answer | None = None


def listen() -> None:
    """Take note of STOP_SIGNALS from now on, until the process has ended.

    What a shell made the process ignore (nohup: SIGHUP; `&` in a script: SIGINT) stays ignored.
    Forked workers are ended by signals, as ever.
    """
    os.register_at_fork(after_in_child=forget)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN or number not in (
            signal.SIGHUP,
            signal.SIGINT,
        ):
            signal.signal(number, _note)


def answer_by(answer: Answer | None) -> None:
    """What to do at the first signal; at once, if it has come already. None = it is only noted."""
    _State.answer = answer
    if _State.received and answer is not None:
        answer(received() or "")


def leave(name: str) -> None:
    """The answer of a run that has not begun."""
    raise Preempted(f"{name} before the first step: nothing to save yet")


def received() -> str | None:
    """Name of the first signal; None = there was none."""
    return signal.Signals(_State.received).name if _State.received else None


def note(number: int) -> None:
    """Take `number` as received, as if the process had got this signal. Nobody answers it."""
    _State.received = _State.received or number


def forget() -> None:
    """Go back to the state before `listen`."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) == _note:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    _State.received, _State.answer = 0, None


def write(text: str) -> None:
    """One line on stderr, from within a handler: print may be what the signal has interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, f"sparsecl: {text}\n".encode())


def _note(number: int, frame: FrameType | None) -> None:
    if not _State.received:
        _State.received = number
        if _State.answer is not None:
            _State.answer(signal.Signals(number).name)


def name_of(code: int) -> str | None:
    """The signal that ended a process: from -9 (Python), 137 (shells) or 247 (DeepSpeed)."""
    for number in (-code, code - 128, 256 - code):
        if 0 < number < signal.NSIG:
            with contextlib.suppress(ValueError):
                return signal.Signals(number).name
    return None
