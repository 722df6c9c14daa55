"""Tokens of one split on disk, read through a memory map.

    <split>.tokens   little-endian uint16 (or uint32 where the vocabulary needs it), end-of-text
                     after every document

No header: dtype, counts and sha256 are in the manifest of the entry.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecl.errors import DataError
from sparsecl.files import sha256_file

DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def dtype_name(vocab_size: int) -> str:
    """The smallest stored type that holds every id below `vocab_size`."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


@dataclass(frozen=True)
class TokenStore:
    """Tokens of one split.

    Attributes:
        tokens: ids [num_tokens], read-only map.
        vocab_size: every id is below it; checked when opened, and again whenever ids are taken.
        num_bytes: UTF-8 bytes of the documents.
        num_documents: documents, each closed by an end-of-text token.
    """

    tokens: np.memmap
    vocab_size: int
    num_bytes: int
    num_documents: int
    path: Path

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids at `positions`, any shape.

        Raises:
            DataError: if an id is outside the vocabulary. An embedding would fail on it with a
                message that names neither the file nor the id.
        """
        ids = np.asarray(self.tokens)[positions].astype(np.int64)
        if ids.size and ids.max() >= self.vocab_size:
            raise DataError(
                f"{self.path}: token id {ids.max()} >= vocab_size {self.vocab_size}; "
                f"the file was changed, delete its folder"
            )
        return ids


def open_store(
    folder: Path, split: str, manifest: dict[str, Any], *, vocab_size: int, verify: bool = False
) -> TokenStore:
    """Open one split of a token entry.

    Args:
        manifest: of the entry; sizes are always compared with it.
        vocab_size: of the tokenizer in use.
        verify: also read the whole file and compare its sha256.

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
    # A link would let whoever made the folder choose which file of the reader's is read.
    if path.is_symlink() or not path.is_file():
        raise DataError(f"{path}: missing or not a plain file; delete {folder} to build it again")
    size = path.stat().st_size
    if size != num_tokens * dtype.itemsize:
        raise DataError(
            f"{path}: {size} bytes, the manifest says {num_tokens * dtype.itemsize}; "
            f"delete {folder} to build it again"
        )
    if num_tokens == 0:
        raise DataError(f"{path}: holds no tokens")
    if max_token >= vocab_size:
        raise DataError(f"{path}: token id {max_token} >= vocab_size {vocab_size}")
    if verify and sha256_file(path) != digest:
        raise DataError(f"{path}: sha256 is not the manifest's; delete {folder} to build it again")
    tokens = np.memmap(path, dtype=dtype, mode="r")
    return TokenStore(tokens, vocab_size, num_bytes, num_documents, path)
