"""Packed files, read as what they hold: .gz, .bz2, .xz, .zst.

However little a file says of its size, what comes out is counted (records.check_ratio). A decoder
keeps a window of what it has unpacked, and the file says how large: up to 2 GiB for .zst and 4 GiB
for .xz, the bounds of the formats, if that much is really unpacked.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from sparsecl.data.sources.reads import Reads, reading
from sparsecl.data.sources.records import LocalFile, check_ratio
from sparsecl.errors import DataError

_CHUNK_BYTES = 1 << 20
_ZST_FEED = 1 << 10  # may unpack to 32 MiB: a block of 128 KiB takes four bytes at least
_ZST_WINDOW = 1 << 31  # of `zstd --long=31`; the library stops at 128 MiB unless it is told


class _Zst(io.RawIOBase):
    """A .zst file of one or more frames. The library's own reader says nothing of one cut short."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file, self._error = file, zstandard.ZstdError
        self._decoder = zstandard.ZstdDecompressor(max_window_size=_ZST_WINDOW)
        self._frame: Any = None
        self._packed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(_ZST_FEED)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError
                return 0
            self._frame = self._frame or self._decoder.decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(self._packed))
            except self._error as error:
                raise OSError(str(error)) from error
            self._packed = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


class _Bounded(io.RawIOBase):
    """What a file unpacks to, as long as it is not absurdly much."""

    def __init__(self, name: str, size: int, unpacked: Any) -> None:
        self._name, self._size, self._file = name, size, unpacked
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._count += count
        check_ratio(self._name, self._size, self._count)
        return count


PACKINGS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _Zst,
}
"""Last suffix of a packed file -> what reads it."""


@contextlib.contextmanager
def opened(file: LocalFile, reads: Reads) -> Iterator[IO[bytes]]:
    """The bytes that a file holds, unpacked if its name says that it is packed."""
    with reading(file.path, reads) as packed:
        suffix = os.path.splitext(file.kind)[1]
        if suffix not in PACKINGS:
            yield packed
            return
        with named_errors(file):
            size = file.path.stat().st_size
            unpacked = _Bounded(file.name, size, PACKINGS[suffix](packed))
            yield cast(IO[bytes], io.BufferedReader(unpacked, _CHUNK_BYTES))


@contextlib.contextmanager
def named_errors(file: LocalFile) -> Iterator[None]:
    """What decoders raise is a DataError that names the file."""
    packing = file.kind.rpartition(".")[2]
    try:
        yield
    except EOFError as error:
        raise DataError(
            f"{file.name}: the {packing} data is truncated; copy the file again"
        ) from error
    except (zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{file.name}: broken {packing} data ({error})") from error
    except MemoryError as error:
        raise DataError(
            f"{file.name}: what it takes to unpack it does not fit into memory"
        ) from error
    except OSError as error:
        if error.errno is not None:  # the disk's doing
            raise
        raise DataError(f"{file.name}: broken {packing} data ({error})") from error
