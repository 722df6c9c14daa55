"""Tokens of one split on disk.

    <split>.tokens   little-endian uint16 (or uint32 where the vocabulary needs it), end-of-text
                     after every document

No header: dtype, counts and sha256 are in the manifest of the entry.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl.data.held_file import HeldFile
from sparsecl.errors import DataError

DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def dtype_name(vocab_size: int) -> str:
    """The smallest stored type that holds every id below `vocab_size`."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


@dataclass(frozen=True)
class TokenStore:
    """Tokens of one split.

    Attributes:
        vocab_size: every id is below it; checked when opened, and again whenever ids are taken.
        num_bytes: UTF-8 bytes of the documents.
        num_documents: documents, each closed by an end-of-text token.
    """

    file: HeldFile
    dtype: np.dtype[Any]
    vocab_size: int
    num_tokens: int
    num_bytes: int
    num_documents: int

    def take(self, starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The `count` token ids from each of `starts` [n] on, [n, count].

        Raises:
            DataError: if an id is outside the vocabulary (an embedding would fail on it with a
                message that names neither the file nor the id), or the file is shorter by now.
        """
        ids = np.empty((len(starts), count), dtype=self.dtype)
        for row, start in zip(ids, starts.tolist(), strict=True):
            self.file.read_into(row, start * self.dtype.itemsize)
        if ids.size and ids.max() >= self.vocab_size:
            raise DataError(
                f"{self.file.path}: token id {ids.max()} >= vocab_size {self.vocab_size}; "
                f"the file was changed, delete its folder"
            )
        return ids.astype(np.int64)


def open_store(
    folder: Path, split: str, manifest: dict[str, Any], *, vocab_size: int
) -> TokenStore:
    """Open one split of a token entry; its size is compared, its sha256 not yet.

    Args:
        manifest: of the entry.
        vocab_size: of the tokenizer in use.

    Raises:
        DataError: if the file is absent, is not what the manifest says, or holds larger ids.
    """
    path = folder / f"{split}.tokens"
    try:
        dtype, part = DTYPES[manifest["dtype"]], manifest[split]
        counts = [part[name] for name in ("tokens", "max_token", "bytes", "documents")]
        digest = part["sha256"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}: the manifest lacks {error}; delete the folder") from error
    if not all(type(count) is int and -1 <= count < 2**62 for count in counts):
        raise DataError(f"{folder}: the manifest's counts of {split} are none; delete the folder")
    num_tokens, max_token, num_bytes, num_documents = counts
    file = HeldFile(path, size=num_tokens * dtype.itemsize, sha256=digest)
    if num_tokens == 0:
        raise DataError(f"{path}: holds no tokens")
    if max_token >= vocab_size:
        raise DataError(f"{path}: token id {max_token} >= vocab_size {vocab_size}")
    return TokenStore(file, dtype, vocab_size, num_tokens, num_bytes, num_documents)
