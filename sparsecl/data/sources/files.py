"""Source `files`: local files, named one by one or by globs."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources.readers import SUFFIXES, read_documents
from sparsecl.data.sources.reads import Reads, note
from sparsecl.data.sources.records import Fields
from sparsecl.data.sources.source import Source
from sparsecl.errors import DataError, MissingInputError
from sparsecl.opening import plain_input


def open_source(domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source:
    """List the files of a domain; see `local_files`."""
    del seed  # files are what they are
    reads: Reads = {}
    fields = Fields(
        names=domain.columns or (domain.text_field,),
        separator=domain.separator,
        replace=domain.encoding_errors == "replace",
        max_bytes=max_document_bytes,
        reads=reads,
    )
    key = {
        "source": "files",
        "fields": list(fields.names),
        "separator": domain.separator,
        "encoding_errors": domain.encoding_errors,
    }
    return local_files(
        domain, lambda path: read_documents(path, fields), key, suffixes=SUFFIXES, reads=reads
    )


def local_files(
    domain: DomainConfig,
    read: Callable[[Path], Iterator[str]],
    key: Mapping[str, Any],
    *,
    suffixes: tuple[str, ...],
    reads: Reads | None = None,
) -> Source:
    """The files that `train` and `validation` name, each checked to be there and not empty.

    Args:
        read: documents of one file.
        key: JSON values that decide, beside the files, what is read: name of the source, options.
        suffixes: of the files that `read` understands, in lower case.
        reads: where `read` notes the sha256 of what it reads (reads.reading); files that it does
            not note are read once more for it.

    Raises:
        MissingInputError: a file is missing, a folder, unreadable; a glob matches nothing.
        DataError: a file is empty or of an unknown kind.
    """
    paths = {
        split: _expand(domain.name, split, getattr(domain, split), suffixes)
        for split in ("train", "validation")
    }

    noted: Reads = {} if reads is None else reads

    def texts(split: str) -> Iterator[str]:
        for path in paths[split]:
            try:
                yield from read(path)
            finally:  # who reads may have enough before the end
                if str(path) not in noted:
                    note(path, noted)

    stamps = {split: [_stamp(path) for path in paths[split]] for split in paths}
    has_validation = bool(domain.validation)
    return Source(
        key={**key, **stamps},
        texts=texts,
        has_validation=has_validation,
        files=paths,
        reads=noted,
    )


def _expand(
    name: str, split: str, patterns: tuple[str, ...], suffixes: tuple[str, ...]
) -> list[Path]:
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
            found[_checked(Path(match), where, suffixes)] = None
    return list(found)


def _checked(path: Path, where: str, suffixes: tuple[str, ...]) -> Path:
    if path.is_dir():
        raise MissingInputError(f"{where}: {path} is a folder; write a glob such as {path}/*.jsonl")
    try:
        with open(path, "rb", opener=plain_input) as file:
            empty = not file.read(1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MissingInputError(f"{where}: {path}: {reason}") from error
    if empty:
        raise DataError(f"{where}: {path} is empty")
    if not path.name.lower().endswith(suffixes):
        raise DataError(f"{where}: {path} is of an unknown kind; known are {', '.join(suffixes)}")
    return path.resolve()


def _stamp(path: Path) -> list[Any]:
    """What changes when a file is edited: path, bytes, nanoseconds of the last change."""
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def check_apart(domains: Mapping[str, Mapping[str, Sequence[Path]]]) -> None:
    """Refuse a file that is training text and validation text, in one domain or in two.

    Links and second names of a file are that file.

    Args:
        domains: files of each split by name of the domain.

    Raises:
        DataError: with both places.
    """
    held_out: dict[tuple[int, int], str] = {}
    for name, files in domains.items():
        for path in files.get("validation", ()):
            held_out.setdefault(_identity(path), name)
    for name, files in domains.items():
        for path in files.get("train", ()):
            other = held_out.get(_identity(path))
            if other is not None:
                where = "its validation" if other == name else f"validation of domain {other}"
                raise DataError(
                    f"domain {name}: train: {path} is {where} too; name it, or match it by a "
                    f"glob, in one of them"
                )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
