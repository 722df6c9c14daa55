"""What the run must not train on because it is held out, and what it trains on nevertheless.

A training document is left out if it is the same (identity.py) as a document that some domain of
the run holds out, as a piece of one, or as the whole that such a piece is of; all its pieces are.
Part of a document inside another one is not found by that: `overlap` counts it (ngrams.py).

There is one cache entry for all domains, since each depends on what the others hold out. It is the
same for every order of the domains.

    <domain>.left_out   numbers of the training documents that are left out (domain_text.py)

Cost: training text is read once more, at some 30 MB/s; the digests of its documents are looked up
in a file for each domain. Memory: one document, and a few MB for the runs of each domain.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sparsecl.data import ngrams
from sparsecl.data.digest_set import DigestSet
from sparsecl.data.domain_text import NUMBER_BYTES, DomainText, LeftOut, is_count
from sparsecl.errors import DataError
from sparsecl.opening import plain

_COUNTS = ("every", "runs", "found", "documents")


def key(texts: Sequence[DomainText]) -> Any:
    """What decides the content of the entry."""
    return sorted([text.domain.name, text.digest, _marks(text)] for text in texts)


def _marks(text: DomainText) -> list[str]:
    return [text.manifest[split]["marks"] for split in ("train", "validation")]


def write_leaks(texts: Sequence[DomainText], folder: Path, progress: tqdm) -> dict[str, Any]:
    """Write the entry into `folder`.

    Returns:
        By domain {left_out: {documents, sha256, by}, overlap: {every, runs, found, documents}}:
        of `runs` runs of its validation text `found` are in training text of the run, which are in
        `documents` documents.
    """
    texts = sorted(texts, key=lambda text: text.domain.name)
    with contextlib.ExitStack() as files:
        held_out = {
            text.domain.name: files.enter_context(_held_out(text, folder)) for text in texts
        }
        left_out = {text.domain.name: _leave_out(text, held_out, folder) for text in texts}
    kept = [replace(text, left_out=left_out[text.domain.name]) for text in texts]
    found = _overlap(kept, progress)
    return {
        "domains": {
            name: {
                "left_out": {"documents": out.documents, "sha256": out.sha256, "by": out.by},
                "overlap": found[name],
            }
            for name, out in left_out.items()
        }
    }


def read_leaks(
    texts: Sequence[DomainText], entry: Path, manifest: Mapping[str, Any]
) -> tuple[list[DomainText], dict[str, dict[str, Any]]]:
    """The texts without what is left out, and the manifest's part for each domain.

    Raises:
        DataError: the manifest is not one of `write_leaks`, or nothing is left of a domain.
    """
    kept, parts = [], {}
    for text in texts:
        name = text.domain.name
        try:
            part = manifest["domains"][name]
            counts = [part["left_out"]["documents"], *part["left_out"]["by"].values()]
            counts += [part["overlap"][count] for count in _COUNTS]
            whole = isinstance(part["left_out"]["sha256"], str) and all(map(is_count, counts))
        except (KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise DataError(f"{entry}: its manifest is not one of leaks; delete the folder")
        kept.append(replace(text, left_out=LeftOut(_path(entry, name), **part["left_out"])))
        kept[-1].check_trained()
        parts[name] = part
    return kept, parts


def share(overlap: Mapping[str, int]) -> float | None:
    """The part of a domain's runs that training text has; None if it has none."""
    return overlap["found"] / overlap["runs"] if overlap["runs"] else None


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.left_out"


@contextlib.contextmanager
def _held_out(text: DomainText, folder: Path) -> Iterator[DigestSet]:
    """Digests of what a domain holds out."""
    with DigestSet(folder / f"{text.domain.name}.held_out") as found:
        for own, whole in text.marks("validation"):
            found.add(own)
            if whole != own:
                found.add(whole)
        yield found


def _leave_out(text: DomainText, held_out: Mapping[str, DigestSet], folder: Path) -> LeftOut:
    digest, count, by = hashlib.sha256(), 0, dict.fromkeys(held_out, 0)
    path = _path(folder, text.domain.name)
    with open(path, "xb", opener=plain) as file:
        for number, (own, whole) in enumerate(text.marks("train")):
            names = [n for n, seen in held_out.items() if own in seen or whole in seen]
            if not names:
                continue
            line = number.to_bytes(NUMBER_BYTES, "little")
            file.write(line)
            digest.update(line)
            count += 1
            for name in names:
                by[name] += 1
        file.flush()
        os.fsync(file.fileno())
    by = {name: found for name, found in by.items() if found}
    return LeftOut(path, count, digest.hexdigest(), by)


def _overlap(texts: Sequence[DomainText], progress: tqdm) -> dict[str, dict[str, int]]:
    samples = {
        text.domain.name: ngrams.Sample(
            _shown(text.documents("validation"), progress), text.manifest["validation"]["bytes"]
        )
        for text in texts
    }
    looked_for = np.unique(np.concatenate([sample.hashes for sample in samples.values()]))
    training = (document for text in texts for document in text.documents("train"))
    found = ngrams.occurring(looked_for, _shown(training, progress))
    return {name: sample.counts(found) for name, sample in samples.items()}


def _shown(documents: Iterator[str], progress: tqdm) -> Iterator[str]:
    for document in documents:
        progress.update(len(document))
        yield document
