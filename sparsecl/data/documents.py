"""Documents -> cleaned, without duplicates, parted into train and validation, on disk.

A document lies on one side whole, however many pieces it is cut into. Which side is decided by its
own digest, so adding documents moves no other one; of a file too big to be held its first piece
decides. A domain of a single document is parted inside it: its tail is held out.

Each side has a document once, the first of those that are the same (identity.py). What is on both
sides, of this domain or of two, is left out of training by leaks.py.
"""

import contextlib
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparsecl.data import text_store
from sparsecl.data.digest_set import DigestSet
from sparsecl.data.identity import document_digest
from sparsecl.data.sources import Continuation, Source
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

    Memory: one document. While it runs, files in `folder` hold 16 bytes for each distinct one.

    Returns:
        Per split {documents, bytes, longest, sha256, marks}, and the numbers of dropped documents.
    """
    with contextlib.ExitStack() as files:
        sides = _Sides(
            folder,
            files,
            share=0.0 if source.has_validation else validation_share,
            limit=None if source.atomic else max_document_bytes,
            max_train_bytes=max_train_bytes,
        )
        for split in SPLITS:
            # Closed here, so that what was read of a file that is left early is noted now.
            with closing(_generated(source.texts(split))) as texts:
                for text in texts:
                    progress.update(sides.put(text, split))
                    if sides.full:
                        break
    found = sides.summary()
    if sides.num_documents == 1 and not source.has_validation:
        found |= _hold_out_tail(folder, found, validation_share)
    return found


def _generated(texts: Iterator[str]) -> Generator[str]:
    yield from texts


class _Sides:
    """Both sides of a domain while they are written.

    Attributes:
        num_documents: distinct ones, each counted once however many pieces it has.
        full: `max_train_bytes` have been read.
    """

    def __init__(
        self,
        folder: Path,
        files: contextlib.ExitStack,
        *,
        share: float,
        limit: int | None,
        max_train_bytes: int | None,
    ) -> None:
        self._share, self._limit, self._max_bytes = share, limit, max_train_bytes
        self._writers = {s: files.enter_context(TextWriter(folder, s)) for s in SPLITS}
        self._seen = {s: files.enter_context(DigestSet(folder / f"{s}.seen")) for s in SPLITS}
        self._side: str | None = None
        self._dropped = {"empty": 0, "duplicate": 0}
        self.num_documents = 0

    def put(self, text: str, split: str) -> int:
        """Write what is new of a text that the source gave for `split`; returns its bytes."""
        if not isinstance(text, Continuation):
            self._side = None
        if not text.strip():
            self._dropped["empty"] += 1
            return 0
        text = text.replace("\r\n", "\n")
        whole = document_digest(text)
        is_first = self._side is None
        if self._side is None:
            held_out = split == "validation" or _fraction(whole) < self._share
            self._side = "validation" if held_out else "train"
        if not self._seen[self._side].add(whole):
            self._dropped["duplicate"] += 1
            return 0
        self.num_documents += is_first
        return self._write(text.encode(), whole, self._side)

    def _write(self, document: bytes, whole: bytes, side: str) -> int:
        writer, before = self._writers[side], self._writers[side].num_bytes
        if self._limit is None or len(document) <= self._limit:
            writer.append(document, whole, whole)
            return len(document)
        for piece in cut(document, self._limit):
            own = document_digest(piece.decode())
            if self._seen[side].add(own):
                writer.append(piece, own, whole)
            else:
                self._dropped["duplicate"] += 1
            if self.full:
                break
        return writer.num_bytes - before

    @property
    def full(self) -> bool:
        # What is read of a single document is parted later, on whichever side it lies now.
        counted = SPLITS if self._share and self.num_documents == 1 else ("train",)
        num_bytes = sum(self._writers[split].num_bytes for split in counted)
        return self._max_bytes is not None and num_bytes >= self._max_bytes

    def summary(self) -> dict[str, Any]:
        parts = {split: self._writers[split].summary() for split in SPLITS}
        return {**parts, "dropped": self._dropped}


def _hold_out_tail(folder: Path, found: dict[str, Any], share: float) -> dict[str, Any]:
    """Part a domain's only document: the last `share` of its bytes, from a line end on, is held
    out. Returns both splits' parts of the manifest."""
    side = max(SPLITS, key=lambda split: found[split]["bytes"])
    for name in text_store.PARTS:
        os.replace(folder / f"{side}.{name}", folder / f"whole.{name}")
        (folder / f"{_other(side)}.{name}").unlink()
    before = found[side]["bytes"] - max(1, round(share * found[side]["bytes"]))
    with TextWriter(folder, "train") as train, TextWriter(folder, "validation") as validation:
        for text in text_store.documents(folder, "whole", found[side]):
            document = text.encode()
            end = len(document)
            if before < end:
                end = _cut_point(document, before) if before > 0 else 0
            before -= len(document)
            for writer, piece in ((train, document[:end]), (validation, document[end:])):
                if piece:
                    own = document_digest(piece.decode())
                    writer.append(piece, own, own)  # the whole is on both sides
    for name in text_store.PARTS:
        (folder / f"whole.{name}").unlink()
    return {"train": train.summary(), "validation": validation.summary()}


def _other(side: str) -> str:
    return SPLITS[1 - SPLITS.index(side)]


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


def _fraction(digest: bytes) -> float:
    """A number in [0, 1) that the digest decides."""
    return int.from_bytes(digest[:8], "big") / 2**64
