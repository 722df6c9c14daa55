"""How files of a run, study or cache are opened, and files that the user names.

Nothing inside such a folder is opened through a link: whoever can write there could have another
file emptied or removed. A pipe in place of a file would hold up its reader for ever. So both are
refused, by an OSError that says what is there. The folder itself may be reached through links, and
so may a file that the user names.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

Opener = Callable[[str, int], int]

_KINDS = (
    (stat.S_ISLNK, errno.ELOOP, "a link, which is not followed"),
    (stat.S_ISDIR, errno.EISDIR, "a folder"),
    (stat.S_ISFIFO, errno.ENXIO, "a pipe"),
    (stat.S_ISSOCK, errno.ENXIO, "a socket"),
    (stat.S_ISREG, errno.ENOTDIR, "a file"),
)


class NotPlainError(OSError):
    """Something else is in the place of a file or folder."""


def plain(path: str | Path, flags: int) -> int:
    """The `opener` of every `open` inside a run, study or cache folder: plain files only.

    Raises:
        NotPlainError: at once, for a link, a pipe, a folder or a device; and for a file that is to
            be written and has a second name (a hard link), whose content would change too.
    """
    return _open(path, flags, follow=False)


def plain_input(path: str | Path, flags: int) -> int:
    """As `plain`, for a file that the user named: links are followed."""
    return _open(path, flags, follow=True)


def read_plain(path: Path, opener: Opener = plain) -> bytes:
    """The content of a plain file; OSError as the opener has it."""
    with open(path, "rb", opener=opener) as file:
        return file.read()


def is_folder(path: Path) -> bool:
    """True if `path` itself is a folder and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def make_folder(path: Path) -> None:
    """Make a folder in one that is there, unless it is there already; a link to one does not count.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    check_kind(os.lstat(path), stat.S_ISDIR)


def check_kind(found: os.stat_result, is_right: Callable[[int], bool]) -> None:
    """Raise NotPlainError, which says what is there, unless `is_right` of the mode."""
    if is_right(found.st_mode):
        return
    for is_kind, code, name in _KINDS:
        if is_kind(found.st_mode):
            raise NotPlainError(code, f"is {name}")
    raise NotPlainError(errno.ENXIO, "is a device")


def _open(path: str | Path, flags: int, *, follow: bool) -> int:
    written = bool(flags & (os.O_WRONLY | os.O_RDWR))
    with contextlib.suppress(FileNotFoundError):
        # Before it is opened: to open a device may do something by itself.
        _check_file(os.stat(path, follow_symlinks=follow), written)
    guards = os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(path, flags | guards, 0o666)
    try:
        _check_file(os.fstat(handle), written)  # it may have been replaced in between
        os.set_blocking(handle, True)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_file(found: os.stat_result, written: bool) -> None:
    check_kind(found, stat.S_ISREG)
    if written and found.st_nlink > 1:
        raise NotPlainError(errno.EMLINK, "has a second name, a hard link, that would change too")
