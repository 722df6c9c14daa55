"""Documents on disk: all texts end to end in one file, their lengths in another.

<split>.text      UTF-8 bytes of all documents, nothing between them
<split>.lengths   little-endian uint32, bytes of each document
<split>.marks     32 bytes for each document: its digest (identity.py) and that of the document that
                  it is a piece of, which is the same if it is whole
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsecl.data.cache import open_file, unreadable
from sparsecl.data.identity import DIGEST_BYTES
from sparsecl.errors import DataError
from sparsecl.opening import plain

_LENGTH_BYTES = 4
_MARK_BYTES = 2 * DIGEST_BYTES

PARTS = ("text", "lengths", "marks")
"""Files of a split."""


class TextWriter:
    """Append documents to a split; use as a context manager.

    Attributes:
        num_documents: documents written.
        num_bytes: UTF-8 bytes written.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.num_documents = 0
        self.num_bytes = 0
        self._longest = 0
        self._digest = hashlib.sha256()
        self._marks_digest = hashlib.sha256()
        with contextlib.ExitStack() as files:
            self._text, self._lengths, self._marks = (
                files.enter_context(open(folder / f"{split}.{name}", "xb", opener=plain))
                for name in PARTS
            )
            self._files = files.pop_all()

    def append(self, document: bytes, own: bytes, whole: bytes) -> None:
        """Write one document of valid UTF-8, not empty, under 4 GiB.

        Args:
            own: its digest.
            whole: digest of the document that it is a piece of, or its own.
        """
        length = len(document).to_bytes(_LENGTH_BYTES, "little")
        self._text.write(document)
        self._lengths.write(length)
        self._marks.write(own + whole)
        # The length first, so that moving a boundary changes the digest.
        self._digest.update(length)
        self._digest.update(document)
        self._marks_digest.update(own + whole)
        self.num_documents += 1
        self.num_bytes += len(document)
        self._longest = max(self._longest, len(document))

    def summary(self) -> dict[str, Any]:
        """Counts, bytes of the longest document, and sha256 of text and marks; the split's part of
        the manifest."""
        return {
            "documents": self.num_documents,
            "bytes": self.num_bytes,
            "longest": self._longest,
            "sha256": self._digest.hexdigest(),
            "marks": self._marks_digest.hexdigest(),
        }

    def __enter__(self) -> "TextWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._files:
            for file in (self._text, self._lengths, self._marks) if kind is None else ():
                file.flush()
                os.fsync(file.fileno())


def documents(folder: Path, split: str, part: Mapping[str, Any]) -> Iterator[str]:
    """All documents of a split in order, read once; memory: one of them.

    Only at the end it is known whether they are the ones that were written. Whoever makes something
    of them must read to the end, and forget it if that raises.

    Args:
        part: of the split in the entry's manifest.

    Raises:
        DataError: they are not.
    """
    path, digest = folder / f"{split}.text", hashlib.sha256()
    changed = DataError(f"{path}: was changed, or its lengths were; delete {folder}")
    with open_file(path) as text, open_file(folder / f"{split}.lengths") as lengths:
        try:
            num_bytes = os.fstat(text.fileno()).st_size
            for _ in range(part["documents"]):
                length = lengths.read(_LENGTH_BYTES)
                size = int.from_bytes(length, "little")
                # A wrong length must not make gigabytes be read at once.
                document = text.read(min(size, part["longest"], num_bytes))
                if len(length) < _LENGTH_BYTES or len(document) < size:
                    raise changed
                digest.update(length)
                digest.update(document)
                yield document.decode()
            rest = text.read(1) or lengths.read(1)
        except OSError as error:
            raise unreadable(path, error, folder) from None
        except UnicodeDecodeError:
            raise changed from None
    if rest or digest.hexdigest() != part["sha256"]:
        raise changed


def marks(folder: Path, split: str, part: Mapping[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Digests of every document of a split and of what it is a piece of; as for `documents`."""
    path, digest = folder / f"{split}.marks", hashlib.sha256()
    changed = DataError(f"{path}: was changed; delete {folder}")
    with open_file(path) as file:
        try:
            for _ in range(part["documents"]):
                mark = file.read(_MARK_BYTES)
                if len(mark) < _MARK_BYTES:
                    raise changed
                digest.update(mark)
                yield mark[:DIGEST_BYTES], mark[DIGEST_BYTES:]
            rest = file.read(1)
        except OSError as error:
            raise unreadable(path, error, folder) from None
    if rest or digest.hexdigest() != part["marks"]:
        raise changed
