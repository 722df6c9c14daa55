"""What every source answers."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources.reads import Reads


@dataclass(frozen=True)
class Source:
    """Documents of one domain, not read yet.

    Attributes:
        key: JSON value that decides the documents (settings, versions, sizes and times of files);
            cheap to find out, and also the manifest's description of the source.
        texts: documents of a split (`train` or `validation`), each time from the start. Without
            given validation text, that split is empty and the caller parts `train`.
        has_validation: whether validation text is given.
        atomic: documents must not be cut, however long they are.
        entropy_rate: nats per UTF-8 byte, where it is known.
        reads: the files that `texts` has read so far; filled while it is iterated.
    """

    key: dict[str, Any]
    texts: Callable[[str], Iterator[str]]
    has_validation: bool = False
    atomic: bool = False
    entropy_rate: float | None = None
    reads: Reads = field(default_factory=dict)


class OpenSource(Protocol):
    """Signature of every source's `open_source`."""

    def __call__(self, domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source: ...
