"""A set of 16-byte digests that lies in a file: memory does not grow with the number of documents.

An open-addressing hash table. Its pages belong to the page cache, so the kernel writes them out
when memory is short; in a Python set a digest costs about 100 bytes that it cannot. Digests are
uniform (cut from sha256), so their own first bytes are the hash.

The file is read and written by calls, which raise OSError when the disk is full or fails. A memory
map, a few microseconds faster, would end the process by a signal (SIGBUS).
"""

import errno
import os
from pathlib import Path

from sparsecl.data.identity import DIGEST_BYTES
from sparsecl.opening import plain

_EMPTY = bytes(DIGEST_BYTES)
_MAX_LOAD = 0.6  # linear probing looks at 1.8 places for a hit, 3.6 for a miss (Knuth 6.4)
_FIRST_CAPACITY = 1 << 16  # 1 MiB
_LOOK = 8 * DIGEST_BYTES  # bytes read for one look; most probes end in there
_MOVED = 1 << 20  # bytes read at a time where all places are


class DigestSet:
    """Digests seen so far; use as a context manager, which removes the file at the end.

    Args:
        path: the file; it must not exist. Growing needs room for a table of twice the size.
    """

    def __init__(self, path: Path, *, capacity: int = _FIRST_CAPACITY) -> None:
        if capacity < 2 or capacity & (capacity - 1):
            raise ValueError(f"capacity must be a power of two >= 2, got {capacity}")
        self._path = path
        self._count = 0
        self._open(path, capacity)

    def __len__(self) -> int:
        return self._count

    def add(self, digest: bytes) -> bool:
        """Put a digest of 16 bytes in. Returns False if it was there.

        The digest of only zeros, one of 2^128, stands for an empty place and is never found.
        """
        if self._count >= _MAX_LOAD * self._capacity:
            self._grow()
        if not self._put(digest):
            return False
        self._count += 1
        return True

    def __contains__(self, digest: bytes) -> bool:
        return self._find(digest) is None

    def _put(self, digest: bytes) -> bool:
        place = self._find(digest)
        if place is not None:
            os.pwrite(self._file, digest, place)
        return place is not None

    def _find(self, digest: bytes) -> int | None:
        """The empty place in the file that waits for a digest; None if it is there."""
        size = self._capacity * DIGEST_BYTES
        begin = int.from_bytes(digest[:8], "little") % self._capacity * DIGEST_BYTES
        while True:
            places = os.pread(self._file, min(_LOOK, size - begin), begin)
            if not places:
                raise OSError(errno.EIO, "the file was cut")
            for offset in range(0, len(places), DIGEST_BYTES):
                found = places[offset : offset + DIGEST_BYTES]
                if found == digest:
                    return None
                if found == _EMPTY:
                    return begin + offset
            begin = (begin + len(places)) % size

    def _grow(self) -> None:
        """Move everything into a table of twice the size."""
        old, size = self._file, self._capacity * DIGEST_BYTES
        wider = self._path.with_name(f"{self._path.name}.grown")
        self._open(wider, 2 * self._capacity)
        try:
            for begin in range(0, size, _MOVED):
                places = os.pread(old, min(_MOVED, size - begin), begin)
                for offset in range(0, len(places), DIGEST_BYTES):
                    digest = places[offset : offset + DIGEST_BYTES]
                    if digest != _EMPTY:
                        self._put(digest)
        finally:
            os.close(old)
        wider.replace(self._path)

    def _open(self, path: Path, capacity: int) -> None:
        self._file = plain(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._capacity = capacity
        os.ftruncate(self._file, capacity * DIGEST_BYTES)  # zeros: all places are empty

    def close(self) -> None:
        """Forget all, and remove the file. A second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._path.unlink()

    def __enter__(self) -> "DigestSet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
