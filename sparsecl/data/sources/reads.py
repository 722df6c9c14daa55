"""What was read of source files: their sha256, learnt on the way and compared later."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from sparsecl.errors import DataError, MissingInputError
from sparsecl.opening import plain_input

Reads = dict[str, list[Any]]
"""By path: number of bytes read, from the start on, and their sha256. JSON."""

_CHUNK_BYTES = 1 << 20


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is read from start to end."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0, opener=plain_input)
        self.num_bytes = 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        self.num_bytes += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def reading(path: Path, reads: Reads) -> Iterator[IO[bytes]]:
    """Open a source file; what was read of it until the end of the block goes into `reads`."""
    raw = _Hashed(path)
    with cast(IO[bytes], io.BufferedReader(raw, _CHUNK_BYTES)) as file:
        try:
            yield file
        finally:  # who reads may have enough before the end
            reads[str(path)] = [raw.num_bytes, raw.digest.hexdigest()]


def read_bytes(path: Path, reads: Reads) -> bytes:
    """The whole of a source file."""
    with reading(path, reads) as file:
        return file.read()


def note(path: Path, reads: Reads) -> None:
    """Read a file for its sha256 alone; its content a library reads in an order of its own."""
    with reading(path, reads) as file:
        while file.read(_CHUNK_BYTES):
            pass


def check_reads(reads: Mapping[str, list[Any]], domain: str, entry: Path) -> None:
    """Compare source files with what was read of them when the text entry was built.

    Raises:
        DataError: one was edited since.
        MissingInputError: one is gone, or cannot be read.
    """
    for path, (num_bytes, sha256) in reads.items():
        digest, left = hashlib.sha256(), num_bytes
        try:
            with open(path, "rb", opener=plain_input) as file:
                while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
                    digest.update(chunk)
                    left -= len(chunk)
        except OSError as error:
            raise MissingInputError(f"domain {domain}: {path}: {error.strerror}") from error
        if digest.hexdigest() != sha256:
            raise DataError(
                f"domain {domain}: {path} was edited since its text was prepared, and has kept its "
                f"size and time; delete {entry} to read it again"
            )
