"""What every source answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources.reads import Reads
from sparsecl.data.sources.remarks import Remarks


class Continuation(str):
    """A text that goes on with the document of the text before it: some are too big to be held."""


@dataclass(frozen=True)
class Source:
    """Documents of one domain, not read yet.

    Attributes:
        key: JSON value that decides the documents (settings, versions, sizes and times of files);
            cheap to find out, and also the manifest's description of the source.
        texts: documents of a split (`train` or `validation`), each time from the start. Without
            given validation text, that split is empty and the caller parts `train`. Each is a
            document, but for a `Continuation`.
        has_validation: whether validation text is given.
        atomic: documents must not be cut, however long they are.
        entropy_rate: nats per UTF-8 byte, where it is known.
        files: local files of each split, where there are some; none may be on both sides.
        reads: the files that `texts` has read so far; filled while it is iterated.
        remarks: what `texts` has passed over; filled likewise.
    """

    key: dict[str, Any]
    texts: Callable[[str], Iterator[str]]
    has_validation: bool = False
    atomic: bool = False
    entropy_rate: float | None = None
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    reads: Reads = field(default_factory=dict)
    remarks: Remarks = field(default_factory=Remarks)


class OpenSource(Protocol):
    """Signature of every source's `open_source`."""

    def __call__(self, domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source: ...
