"""Documents -> cleaned, without duplicates, parted into train and validation, on disk.

Which side a document falls on is decided by its own hash, so adding documents moves no other one.
Two documents are the same if their text is, white space aside; the first one is kept.
"""

import hashlib
import unicodedata
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparsecl.data.digest_set import DIGEST_BYTES, DigestSet
from sparsecl.data.sources import Source
from sparsecl.data.text_store import TextWriter

SPLITS = ("train", "validation")


def write_texts(
    source: Source,
    folder: Path,
    *,
    validation_share: float,
    max_document_bytes: int,
    max_train_bytes: int | None,
    progress: tqdm,
) -> dict[str, Any]:
    """Write a source's documents into `folder` (format: text_store).

    Memory: one document. While it runs, a file in `folder` holds 16 bytes for each distinct one.
    A document that is in both given splits stays in validation only.

    Returns:
        Per split {documents, bytes, sha256}, and the numbers of dropped documents.
    """
    dropped = {"empty": 0, "duplicate": 0}
    with (
        DigestSet(folder / "seen") as seen,
        TextWriter(folder, "train") as train,
        TextWriter(folder, "validation") as validation,
    ):
        # Validation first: its hashes then keep its documents out of train.
        for split in ("validation", "train"):
            texts = _pieces(source.texts(split), source.atomic, max_document_bytes, dropped)
            # Closed here, so that what was read of a file that is left early is noted now.
            with closing(texts) as pieces:
                for piece in pieces:
                    key = document_hash(piece)
                    if not seen.add(key):
                        dropped["duplicate"] += 1
                        continue
                    hashed_out = not source.has_validation and _fraction(key) < validation_share
                    writer = validation if split == "validation" or hashed_out else train
                    writer.append(piece)
                    progress.update(len(piece))
                    if max_train_bytes is not None and train.num_bytes >= max_train_bytes:
                        break
        return {
            "train": train.summary(),
            "validation": validation.summary(),
            "dropped": dropped,
        }


def document_hash(document: bytes) -> bytes:
    """Identity of a document: sha256 of its NFC text with every run of white space as one space.

    16 bytes of it: a chance collision among 10**9 documents is below 10**-20.
    """
    text = unicodedata.normalize("NFC", document.decode())
    return hashlib.sha256(" ".join(text.split()).encode()).digest()[:DIGEST_BYTES]


def cut(document: bytes, limit: int) -> Iterator[bytes]:
    """Cut UTF-8 into pieces of at most `limit` (>= 8) bytes; joined they are the document.

    Each cut is at the last line end of the piece's second half; else at the last space there;
    else between two characters.
    """
    while len(document) > limit:
        end = _cut_point(document, limit)
        yield document[:end]
        document = document[end:]
    if document:
        yield document


def _cut_point(document: bytes, limit: int) -> int:
    for mark in (b"\n", b" "):
        found = document.rfind(mark, limit // 2, limit)
        if found >= 0:
            return found + 1
    end = limit
    while document[end] & 0xC0 == 0x80:  # a continuation byte: not the start of a character
        end -= 1
    return end


def _pieces(
    texts: Iterator[str], atomic: bool, limit: int, dropped: dict[str, int]
) -> Generator[bytes]:
    for text in texts:
        if not text.strip():
            dropped["empty"] += 1
            continue
        document = text.replace("\r\n", "\n").encode()
        yield from [document] if atomic else cut(document, limit)


def _fraction(key: bytes) -> float:
    """A number in [0, 1) that the hash decides."""
    return int.from_bytes(key[:8], "big") / 2**64
