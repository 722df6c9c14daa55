"""Where text comes from: one file per kind of source, one function of one signature each."""

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources import files, hf, installed, synthetic
from sparsecl.data.sources.source import OpenSource, Source

SOURCES: dict[str, OpenSource] = {
    "files": files.open_source,
    "hf": hf.open_source,
    "installed": installed.open_source,
    "synthetic": synthetic.open_source,
}


def open_source(domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source:
    """Look up the source of a domain; reads listings, not text."""
    return SOURCES[domain.source](domain, seed=seed, max_document_bytes=max_document_bytes)


__all__ = ["SOURCES", "Source", "open_source"]
