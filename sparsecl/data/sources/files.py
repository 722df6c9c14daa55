"""Source `files`: local files, named one by one or by globs."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources.readers import SUFFIXES, Fields, read_documents
from sparsecl.data.sources.source import Source
from sparsecl.errors import DataError, MissingInputError


def open_source(domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source:
    """List the files of a domain; every file is checked to exist, to be readable and not empty.

    Raises:
        MissingInputError: a file is missing, a folder, unreadable; a glob matches nothing.
        DataError: a file is empty or of an unknown kind.
    """
    del seed  # files are what they are
    paths = {
        split: _expand(domain.name, split, getattr(domain, split))
        for split in ("train", "validation")
    }
    fields = Fields(
        names=domain.columns or (domain.text_field,),
        separator=domain.separator,
        replace=domain.encoding_errors == "replace",
        max_bytes=max_document_bytes,
    )

    def texts(split: str) -> Iterator[str]:
        for path in paths[split]:
            yield from read_documents(path, fields)

    key = {
        "source": "files",
        "fields": list(fields.names),
        "separator": domain.separator,
        "encoding_errors": domain.encoding_errors,
        **{split: [_stamp(path) for path in paths[split]] for split in paths},
    }
    return Source(key=key, texts=texts, has_validation=bool(domain.validation))


def _expand(name: str, split: str, patterns: tuple[str, ...]) -> list[Path]:
    """Files that the patterns name: in the order written, sorted within a glob, each once."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        where = f"domain {name}: {split}: {pattern}"
        matches = [pattern]
        # A file whose name holds brackets is meant as it is written.
        if not os.path.lexists(pattern) and glob.has_magic(pattern):
            matches = sorted(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
            if not matches:
                raise MissingInputError(f"{where}: the glob matches no file in {os.getcwd()}")
        for match in matches:
            found[_checked(Path(match), where)] = None
    return list(found)


def _checked(path: Path, where: str) -> Path:
    if path.is_dir():
        raise MissingInputError(f"{where}: {path} is a folder; write a glob such as {path}/*.jsonl")
    try:
        with open(path, "rb") as file:
            empty = not file.read(1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MissingInputError(f"{where}: {path}: {reason}") from error
    if empty:
        raise DataError(f"{where}: {path} is empty")
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{where}: {path} is of an unknown kind; known are {', '.join(SUFFIXES)}")
    return path.resolve()


def _stamp(path: Path) -> list[Any]:
    """What changes when a file is edited: path, bytes, nanoseconds of the last change."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]
