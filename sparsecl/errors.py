"""What a user can get wrong, and the exit code that says so.

Codes follow sysexits.h, so that a batch system can tell "fix the config" from "requeue me".
"""


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
    """A file could not be written: the disk is full, or it fails."""

    exit_code = 74  # EX_IOERR


class Preempted(BaseException):
    """The run was asked to stop, has saved its state, and wants to be started again.

    Like KeyboardInterrupt it is no Exception: it may be raised anywhere by a signal, and what
    tells other ranks of a failure must not take it for one.
    """

    exit_code = 75  # EX_TEMPFAIL


class PeerLostError(RuntimeError):
    """Another rank is gone, did not come, or does not answer."""

    exit_code = 76  # EX_PROTOCOL
