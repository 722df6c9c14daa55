"""What validation text a run scores: which windows of it, and how much of it that is.

Two texts of each domain. "inside" is what evaluations inside a phase read (eval.tokens), "ends"
what the result matrix stands on (eval.end_tokens). Before training and at a phase end both are
scored, so every difference of the matrix is one of equal text, and so is every curve over a phase
with its two ends.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from sparsecl.data.batches import EvaluationWindows, evaluation_windows
from sparsecl.data.prepare import DomainData
from sparsecl.data.token_store import TokenStore
from sparsecl.engine.run_config import EvalConfig

TextName = Literal["inside", "ends"]
Scored = Mapping[str, Mapping[str, int]]
"""Text -> documents, windows, tokens, as `text_sizes` gives it."""

SCANNED = 1 << 20
"""Tokens that are read at once to find the borders of documents."""


@dataclass(frozen=True)
class EvaluationText:
    """What is scored of one domain: fixed for the run."""

    inside: EvaluationWindows
    ends: EvaluationWindows

    @property
    def equal(self) -> bool:
        """Both read the same windows."""
        return np.array_equal(self.inside.chosen, self.ends.chosen)


@dataclass(frozen=True)
class TextSize:
    """How much text is behind a score."""

    documents: int
    """With at least one predicted token among them."""

    windows: int
    tokens: int
    """Predicted."""


def evaluation_texts(
    config: EvalConfig, domains: Sequence[DomainData], *, context: int
) -> dict[str, EvaluationText]:
    """What a run scores, by domain. The validation text, `context` and the two caps decide it."""
    caps = (config.tokens, config.cap_at_ends)
    return {
        domain.name: EvaluationText(
            *(evaluation_windows(domain.validation, context=context, max_tokens=m) for m in caps)
        )
        for domain in domains
    }


def text_digest(texts: Mapping[str, EvaluationText]) -> str:
    """Equal if the same windows are read; for resumes and comparisons."""
    digest = hashlib.sha256()
    for name, text in texts.items():
        for windows in (text.inside, text.ends):
            place = f"{name} {windows.context} {windows.store.num_tokens} {len(windows)}\n"
            digest.update(place.encode() + windows.chosen.astype("<i8").tobytes())
    return digest.hexdigest()


def all_text(texts: Mapping[str, EvaluationText]) -> bool:
    """Every window of every domain is scored, inside phases and at their ends."""
    return all(
        len(windows) == windows.num_windows
        for text in texts.values()
        for windows in (text.inside, text.ends)
    )


def text_sizes(text: EvaluationText, eot_id: int) -> dict[str, dict[str, int]]:
    """Sizes of "inside", "ends", and of "all" there is, as the record of a run states them.
    Reads the whole validation text once. Local.

    Args:
        eot_id: the token that closes every document.
    """
    store = text.ends.store
    everything = EvaluationWindows(store, context=text.ends.context)
    counted = {"inside": text.inside, "ends": text.ends, "all": everything}
    covered = _documents_of(store, eot_id, list(counted.values()))
    return {
        name: asdict(TextSize(documents, len(windows), int(windows.sizes.sum())))
        for (name, windows), documents in zip(counted.items(), covered, strict=True)
    }


def _documents_of(store: TokenStore, eot_id: int, texts: Sequence[EvaluationWindows]) -> list[int]:
    """Documents in which each text predicts a token."""
    ends = []  # of documents: the positions of their end-of-text
    for begin in range(0, store.num_tokens, SCANNED):
        (tokens,) = store.take(np.array([begin]), min(SCANNED, store.num_tokens - begin))
        ends.append(begin + np.flatnonzero(tokens == eot_id))
    borders = np.concatenate(ends)
    found = []
    for windows in texts:
        first = windows.chosen * windows.context + 1  # positions that a window predicts
        last = first + windows.sizes - 1
        # The document of a position is the number of ends before it.
        begin, end = (np.searchsorted(borders, place, side="left") for place in (first, last))
        # Windows rise: a document of two neighbours is the last of one and the first of the next.
        shared = int(np.count_nonzero(begin[1:] == end[:-1]))
        found.append(int((end - begin + 1).sum()) - shared)
    return found
