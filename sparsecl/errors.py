"""What a user can get wrong, and the exit code that says so.

Codes follow sysexits.h, so that a batch system can tell "fix the config" from "requeue me".
"""

import errno
import sys


class UserError(ValueError):
    """A mistake that the user can fix. The message is one line: what, which value, the way out."""

    exit_code = 64  # EX_USAGE: command line or config

    agreed = False
    """All ranks have heard of it (dist.agree), so the line of one of them is enough."""


class DataError(UserError):
    """The content of a data file or checkpoint is not what it must be."""

    exit_code = 65  # EX_DATAERR


class MissingInputError(UserError):
    """A file or folder that the config names is not there or cannot be read."""

    exit_code = 66  # EX_NOINPUT


class CannotCreateError(UserError):
    """The run folder cannot be made, written or locked."""

    exit_code = 73  # EX_CANTCREAT


class InvariantError(RuntimeError):
    """A law of the system is broken (an absent weight is not zero, a loss is not finite)."""

    exit_code = 70  # EX_SOFTWARE


class StorageError(UserError):
    """The machine has run out of something: disk, memory, open files, threads; or a disk fails."""

    exit_code = 74  # EX_IOERR


class WorkerLostError(UserError):
    """A process that this one had started for a part of its work was killed."""

    exit_code = 76  # EX_PROTOCOL


class Preempted(BaseException):
    """The run was asked to stop, has saved its state, and wants to be started again.

    Like KeyboardInterrupt it is no Exception: it may be raised anywhere by a signal, and what
    tells other ranks of a failure must not take it for one.
    """

    exit_code = 75  # EX_TEMPFAIL


class PeerLostError(RuntimeError):
    """Another rank is gone, did not come, or does not answer."""

    exit_code = 76  # EX_PROTOCOL


_MEMORY = (
    "out of memory",
    "not enough memory",
    "Cannot allocate memory",
    "bad_alloc",
    "failed to map segment",  # a library that does not fit in
    "could not create a primitive",  # oneDNN's words for it
)
_THREADS = ("can't start new thread", "pthread_create", "Resource temporarily unavailable")
_FILES = ("Too many open files", "Failed to init uv loop")  # of the store that ranks meet at
_SHORTAGES = (
    (_MEMORY, "memory is short", "Free some, or take a smaller model, context or batch.micro"),
    (_FILES, "too many files are open", "Raise the limit, for example with ulimit -n 4096"),
    (_THREADS, "no thread or process can be started", "Raise the limits (ulimit -u, -v)"),
)
_NUMBERS = {
    errno.ENOMEM: _MEMORY,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EAGAIN: _THREADS,
}


def shortage(error: BaseException) -> StorageError | None:
    """`error`, or what it came from, as a limit of the machine with the way out; None = no limit.

    torch and C++ say it in words only.
    """
    words = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of CUDA
        found = _MEMORY
    elif isinstance(error, OSError):
        found = _NUMBERS.get(error.errno or 0)
    else:
        said = words.lower()
        kinds = (kind for kind, *_ in _SHORTAGES if any(word.lower() in said for word in kind))
        found = next(kinds, None) if isinstance(error, (RuntimeError, ImportError)) else None
    for kind, what, way_out in _SHORTAGES:
        if kind is found:
            detail = " ".join(words.split())[:200] or type(error).__name__
            return StorageError(f"{what} ({detail}). {way_out}.")
    return shortage(error.__cause__) if error.__cause__ is not None else None


def reason(error: BaseException) -> str:
    """Why, in one line; without the path, which an OSError repeats and the message already has."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def warn(text: str) -> None:
    """Say one line on stderr."""
    print(f"sparsecl: warning: {text}", file=sys.stderr, flush=True)
