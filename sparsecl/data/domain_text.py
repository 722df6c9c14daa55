"""The text of a domain as it lies in the cache, without what the run leaves out of training."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sparsecl.data import text_store
from sparsecl.data.cache import open_file, unreadable
from sparsecl.data.config import DomainConfig
from sparsecl.data.documents import SPLITS
from sparsecl.errors import DataError
from sparsecl.files import sha256_text

NUMBER_BYTES = 8


class LeftOut(NamedTuple):
    """Training documents that are left out: a file of their numbers, rising, little-endian uint64.

    Attributes:
        by: how many of them each domain holds out; one that two hold out counts for both.
    """

    path: Path
    documents: int
    sha256: str
    by: dict[str, int]

    def numbers(self) -> Iterator[int]:
        """All of them.

        Raises:
            DataError: at the end, if they are not those that were written.
        """
        digest = hashlib.sha256()
        with open_file(self.path) as file:
            try:
                for _ in range(self.documents):
                    number = file.read(NUMBER_BYTES)
                    if len(number) < NUMBER_BYTES:
                        raise self.changed()
                    digest.update(number)
                    yield int.from_bytes(number, "little")
                rest = file.read(1)
            except OSError as error:
                raise unreadable(self.path, error, self.path.parent) from None
        if rest or digest.hexdigest() != self.sha256:
            raise self.changed()

    def changed(self) -> DataError:
        """The error of a file that is not what was written."""
        return DataError(f"{self.path}: was changed; delete {self.path.parent}")


@dataclass(frozen=True)
class DomainText:
    """A domain's text entry, and what of it is not trained on; None = not known yet."""

    domain: DomainConfig
    folder: Path
    manifest: dict[str, Any]
    left_out: LeftOut | None = None

    @property
    def digest(self) -> str:
        """Of all documents that are read."""
        left_out = self.left_out.sha256 if self.left_out else ""
        return sha256_text(json.dumps([self.manifest[s]["sha256"] for s in SPLITS] + [left_out]))

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split, in order; errors as of text_store.documents."""
        found = text_store.documents(self.folder, split, self.manifest[split])
        if split != "train" or self.left_out is None:
            return found
        return _without(found, self.left_out)

    def marks(self, split: str) -> Iterator[tuple[bytes, bytes]]:
        """Their digests, with those that are left out; see text_store.marks."""
        return text_store.marks(self.folder, split, self.manifest[split])

    def check(self) -> None:
        """Look at the parts of the manifest that are read later, and that no split is empty.

        Raises:
            DataError: it is not one of text, or a split has no document.
        """
        manifest, per_byte = self.manifest, self.manifest.get("entropy_per_byte", "")
        parts = [(split, name) for split in SPLITS for name in ("documents", "bytes", "longest")]
        parts += [("dropped", "empty"), ("dropped", "duplicate")]
        try:
            whole = all(is_count(manifest[part][name]) for part, name in parts)
            digests = [manifest[split][name] for split in SPLITS for name in ("sha256", "marks")]
            whole = whole and all(isinstance(digest, str) for digest in digests)
            whole = whole and isinstance(manifest["reads"], dict)
        except (KeyError, TypeError):
            whole = False
        if not whole or not (per_byte is None or type(per_byte) is float and 0.0 <= per_byte < 99):
            raise DataError(f"{self.folder}: its manifest is not one of text; delete the folder")
        self._check_not_empty()

    def _check_not_empty(self) -> None:
        """A split without a document is not mended by a smaller context, nor by a smaller
        data.max_document_bytes, which leaves a document on its side: say what does it."""
        counts = {split: self.manifest[split]["documents"] for split in SPLITS}
        for split in SPLITS:
            if counts[split]:
                continue
            dropped = self.manifest["dropped"]
            raise DataError(
                f"domain {self.domain.name}: {split} has no documents ({sum(counts.values())} in "
                f"all, {dropped['duplicate']} duplicates and {dropped['empty']} empty ones "
                f"dropped): each one's digest decides its side. Cut plain text at a separator "
                r'("\n\n": paragraphs), or give more documents, another data.validation_share, '
                "or validation text of its own"
            )

    def check_trained(self) -> None:
        """Refuse a domain of which everything is left out."""
        left_out = self.left_out
        if left_out is not None and left_out.documents == self.manifest["train"]["documents"]:
            by = ", ".join(f"{count} of domain {name}" for name, count in left_out.by.items())
            raise DataError(
                f"domain {self.domain.name}: every document of train is validation text too "
                f"({by}); give other text"
            )


def _without(documents: Iterator[str], left_out: LeftOut) -> Iterator[str]:
    numbers = left_out.numbers()
    skipped = next(numbers, None)
    for number, document in enumerate(documents):
        if number == skipped:
            skipped = next(numbers, None)
        else:
            yield document
    if skipped is not None:
        raise left_out.changed()


def is_count(value: object) -> bool:
    """A number of documents or bytes, as a manifest may have it."""
    return type(value) is int and 0 <= value < 2**62
