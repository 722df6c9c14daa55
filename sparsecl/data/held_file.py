"""A file that is read for hours while others may write to it.

It is read with pread and never mapped: a map of a file that is cut kills the process (SIGBUS).

Whether it still is the file whose sha256 was compared is asked of the file system: number, size,
mtime and ctime. Nobody can set a ctime, so whoever writes to the file, by whatever name, changes
it; only then the sha256 is computed again. Another file under the same name is no change: what
was opened is what is read.

- A clock ticks every few milliseconds, on old file systems every second. A file as young as that
  when its sha256 was computed may change without another ctime: it is hashed again at the next
  check. A file server whose clock is behind by more than GRANULARITY hides that.
- An NFS client believes the attributes that it has for up to a minute; only opening a file makes it
  ask (close-to-open consistency). So a check opens the file once more. Lustre and GPFS keep
  attributes the same everywhere.
- A page that another process had mapped and dirty before changes without a new ctime until the
  kernel writes it out, and a disk that returns other bytes changes no ctime. The next start, which
  hashes everything, finds both.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsecl.data.cache import open_file, unreadable
from sparsecl.errors import DataError
from sparsecl.opening import plain

GRANULARITY = 2.0
"""Seconds between two ctimes that surely differ; FAT has 2, NFS over ext3 1."""

_CHUNK_BYTES = 1 << 20


class Stamp(NamedTuple):
    """What changes when a file is written to. Two machines see one file with the same stamp: the
    number of the device, which they may disagree about, is not in it."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class HeldFile:
    """A file of a published entry, kept open. All methods are local.

    Args:
        size: bytes that it must have.
        sha256: that it must have.

    Raises:
        DataError: it is absent, no plain file, or of another size.
    """

    def __init__(self, path: Path, *, size: int, sha256: str) -> None:
        self.path = path
        self.sound: Stamp | None = None
        """With this stamp the sha256 is the right one."""
        self._sha256 = sha256
        self._file = open_file(path, buffering=0)
        found = self.stamp().size
        if found != size:
            raise self._changed(f"{found} bytes, the manifest says {size}")

    def stamp(self) -> Stamp:
        """As the file system has it now."""
        now = os.fstat(self._file.fileno())
        return Stamp(now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)

    def read_into(self, array: NDArray[np.generic], offset: int) -> None:
        """Fill a contiguous array from the byte `offset` on.

        Raises:
            DataError: the file is shorter by now.
        """
        left = array.data.cast("B")
        while left:
            try:
                done = os.preadv(self._file.fileno(), [left], offset)
            except OSError as error:
                raise unreadable(self.path, error, self.path.parent) from None
            if not done:
                raise self._changed("it was cut while it was read")
            left, offset = left[done:], offset + done

    def check(self, known: Collection[Stamp] = ()) -> None:
        """Compare the sha256, unless nobody can have written to the file since that was done.

        Args:
            known: stamps with which somebody else found it right.

        Raises:
            DataError: it is not what was published.
        """
        with contextlib.suppress(OSError):
            os.close(plain(self.path, os.O_RDONLY))  # makes an NFS client ask
        began, now = time.time(), self.stamp()
        if now == self.sound or now in known:
            self.sound = now
            return
        if self._digest() != self._sha256:
            raise self._changed("its sha256 is not the manifest's")
        is_young = abs(began - now.ctime_ns / 1e9) < GRANULARITY
        self.sound = None if is_young or self.stamp() != now else now

    def _digest(self) -> str:
        digest, offset = hashlib.sha256(), 0
        try:
            while chunk := os.pread(self._file.fileno(), _CHUNK_BYTES, offset):
                digest.update(chunk)
                offset += len(chunk)
        except OSError as error:
            raise unreadable(self.path, error, self.path.parent) from None
        return digest.hexdigest()

    def _changed(self, how: str) -> DataError:
        entry = self.path.parent
        return DataError(f"{self.path}: {how}; delete {entry} to build it again")
