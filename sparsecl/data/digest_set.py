"""A set of 16-byte digests that lies in a file: memory does not grow with the number of documents.

An open-addressing hash table over a memory map. Its pages belong to the page cache, so the kernel
writes them out when memory is short; in a Python set a digest costs about 100 bytes that it
cannot. Digests are uniform (cut from sha256), so their own first bytes are the hash.
"""

import mmap
from pathlib import Path
from typing import IO

DIGEST_BYTES = 16
_EMPTY = bytes(DIGEST_BYTES)
_MAX_LOAD = 0.6  # linear probing looks at 1.8 places for a hit, 3.6 for a miss (Knuth 6.4)
_FIRST_CAPACITY = 1 << 16  # 1 MiB


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

    def _put(self, digest: bytes) -> bool:
        table, last = self._table, self._capacity - 1
        place = int.from_bytes(digest[:8], "little") & last
        while True:
            begin = place * DIGEST_BYTES
            found = table[begin : begin + DIGEST_BYTES]
            if found == _EMPTY:
                table[begin : begin + DIGEST_BYTES] = digest
                return True
            if found == digest:
                return False
            place = (place + 1) & last

    def _grow(self) -> None:
        """Move everything into a table of twice the size."""
        old_file, old = self._file, self._table
        wider = self._path.with_name(f"{self._path.name}.grown")
        self._open(wider, 2 * self._capacity)
        for begin in range(0, len(old), DIGEST_BYTES):
            digest = old[begin : begin + DIGEST_BYTES]
            if digest != _EMPTY:
                self._put(digest)
        old.close()
        old_file.close()
        wider.replace(self._path)

    def _open(self, path: Path, capacity: int) -> None:
        self._file: IO[bytes] = open(path, "x+b")
        self._file.truncate(capacity * DIGEST_BYTES)  # zeros: all places are empty
        self._table = mmap.mmap(self._file.fileno(), capacity * DIGEST_BYTES)
        self._capacity = capacity

    def close(self) -> None:
        """Forget all, and remove the file. A second call does nothing."""
        if not self._file.closed:
            self._table.close()
            self._file.close()
            self._path.unlink()

    def __enter__(self) -> "DigestSet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
