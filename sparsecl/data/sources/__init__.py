"""Where text comes from: one file per kind of source, one function of one signature each."""

from collections.abc import Iterator
from dataclasses import replace

from sparsecl.config_nodes import one_line
from sparsecl.data.config import DomainConfig
from sparsecl.data.sources import files, hf, installed, synthetic
from sparsecl.data.sources.files import check_apart
from sparsecl.data.sources.source import Continuation, OpenSource, Source
from sparsecl.errors import DataError, MissingInputError, reason

SOURCES: dict[str, OpenSource] = {
    "files": files.open_source,
    "hf": hf.open_source,
    "installed": installed.open_source,
    "synthetic": synthetic.open_source,
}


def open_source(domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source:
    """Look up the source of a domain; reads listings, not text."""
    source = SOURCES[domain.source](domain, seed=seed, max_document_bytes=max_document_bytes)
    return replace(source, texts=lambda split: _named(source.texts(split), domain.name))


def _named(texts: Iterator[str], domain: str) -> Iterator[str]:
    """The same texts. What no source has said of its own files is said of the domain; whoever
    writes the texts can then tell an OSError of his own from one of the source."""
    try:
        yield from texts
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        why = f"{file}{reason(error)}"
        raise MissingInputError(one_line(f"domain {domain}: cannot be read ({why})")) from error
    except MemoryError as error:
        raise DataError(f"domain {domain}: a document does not fit into memory") from error


__all__ = ["SOURCES", "Continuation", "Source", "check_apart", "open_source"]
