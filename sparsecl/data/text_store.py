"""Documents on disk: all texts end to end in one file, their lengths in another.

<split>.text      UTF-8 bytes of all documents, nothing between them
<split>.lengths   little-endian uint32, bytes of each document
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl.errors import DataError

LENGTH = np.dtype("<u4")

_WINDOW = 1 << 16  # lengths that are looked at together; half a MiB of int64


class TextWriter:
    """Append documents to a split; use as a context manager.

    Attributes:
        num_documents: documents written.
        num_bytes: UTF-8 bytes written.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.num_documents = 0
        self.num_bytes = 0
        self._text = open(folder / f"{split}.text", "wb")
        self._lengths = open(folder / f"{split}.lengths", "wb")
        self._digest = hashlib.sha256()

    def append(self, document: bytes) -> None:
        """Write one document of valid UTF-8, under 4 GiB."""
        length = LENGTH.type(len(document)).tobytes()
        self._text.write(document)
        self._lengths.write(length)
        # The length first, so that moving a boundary changes the digest.
        self._digest.update(length)
        self._digest.update(document)
        self.num_documents += 1
        self.num_bytes += len(document)

    def summary(self) -> dict[str, Any]:
        """Counts and sha256 of what was written; the split's part of the manifest."""
        return {
            "documents": self.num_documents,
            "bytes": self.num_bytes,
            "sha256": self._digest.hexdigest(),
        }

    def __enter__(self) -> "TextWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._text, self._lengths):
            file.flush()
            os.fsync(file.fileno())
            file.close()


def lengths(folder: Path, split: str) -> NDArray[np.uint32]:
    """Bytes of each document, uint32 [num_documents]; a map of the file, not a copy.

    Raises:
        DataError: if the two files of the split do not belong together.
    """
    text, path = folder / f"{split}.text", folder / f"{split}.lengths"
    for file in (text, path):
        if file.is_symlink() or not file.is_file():
            raise DataError(f"{file}: missing or not a plain file; delete {folder}")
    num_bytes, size = text.stat().st_size, path.stat().st_size
    # No document is empty, so there are not more of them than bytes: bounds what is read.
    fits = size <= num_bytes * LENGTH.itemsize and size % LENGTH.itemsize == 0
    if size and fits:  # an empty file cannot be mapped
        found = np.memmap(path, dtype=LENGTH, mode="r")
    else:
        found = np.empty(0, dtype=LENGTH)
    if (num_bytes, size) != (int(found.sum(dtype=np.int64)), len(found) * LENGTH.itemsize):
        raise DataError(f"{path}: not the lengths of {text.name}; delete {folder}")
    return found


def windows(sizes: NDArray[np.uint32]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The lengths piece by piece: number of the first document, and int64 [n], n >= 1."""
    for first in range(0, len(sizes), _WINDOW):
        yield first, sizes[first : first + _WINDOW].astype(np.int64)


def spans(folder: Path, split: str, target: int) -> Iterator[tuple[int, np.ndarray]]:
    """Runs of whole documents of about `target` bytes, in order.

    Yields:
        Offset of the run in `<split>.text`, and the lengths of its documents, int64 [n], n >= 1.
    """
    offset = 0
    for _, sizes in windows(lengths(folder, split)):
        begin, ends, first = offset, offset + np.cumsum(sizes), 0
        while first < len(sizes):
            last = max(first + 1, int(np.searchsorted(ends, begin + target, side="right")))
            yield begin, sizes[first:last]
            first, begin = last, int(ends[last - 1])
        offset = begin


def read_span(folder: Path, split: str, offset: int, sizes: np.ndarray) -> list[str]:
    """The documents of one span.

    Raises:
        DataError: if they are not UTF-8; only UTF-8 was ever written there.
    """
    path = folder / f"{split}.text"
    with open(path, "rb") as file:
        file.seek(offset)
        try:
            return [file.read(int(size)).decode() for size in sizes]
        except UnicodeDecodeError:
            raise DataError(f"{path}: was changed, it is not UTF-8; delete {folder}") from None
