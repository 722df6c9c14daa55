"""Source `files`: local files, named one by one or by globs."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources.readers import KNOWN, READERS, read_documents
from sparsecl.data.sources.reads import Reads, note
from sparsecl.data.sources.records import Fields, LocalFile, NoTextError
from sparsecl.data.sources.remarks import Remarks
from sparsecl.data.sources.source import Source
from sparsecl.errors import DataError, MissingInputError
from sparsecl.opening import plain_input


def open_source(domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source:
    """List the files of a domain; see `local_files`."""
    del seed  # files are what they are
    # As the line ends of the text it is looked for in.
    separator = domain.separator.replace("\r\n", "\n")
    remarks = Remarks(separator)
    reads: Reads = {}
    fields = Fields(
        names=domain.columns or (domain.text_field,),
        separator=separator,
        replace=domain.encoding_errors == "replace",
        skip=domain.on_bad_row == "skip",
        max_bytes=max_document_bytes,
        reads=reads,
        remarks=remarks,
    )
    key = {
        "source": "files",
        "fields": list(fields.names),
        "separator": separator,
        "encoding_errors": domain.encoding_errors,
        "on_bad_row": domain.on_bad_row,
    }
    return local_files(
        domain,
        lambda file: read_documents(file, fields),
        key,
        suffixes=tuple(READERS),
        known=KNOWN,
        reads=reads,
        remarks=remarks,
    )


def local_files(
    domain: DomainConfig,
    read: Callable[[LocalFile], Iterator[str]],
    key: Mapping[str, Any],
    *,
    suffixes: tuple[str, ...],
    known: str = "",
    reads: Reads | None = None,
    remarks: Remarks | None = None,
) -> Source:
    """The files that `train` and `validation` name, each checked to be there.

    A file that is named itself must not be empty; of those of a glob some may be, and are counted.

    Args:
        read: documents of one file.
        key: JSON values that decide, beside the files, what is read: name of the source, options.
        suffixes: of the names that `read` understands, in lower case.
        known: the same for messages, if it can be said in fewer words.
        reads: where `read` notes the sha256 of what it reads (reads.reading); files that it does
            not note are read once more for it.
        remarks: where `read` notes what it leaves out.

    Raises:
        MissingInputError: a file is missing, a folder, unreadable; a glob matches nothing.
        DataError: a file is empty or of an unknown kind.
    """
    known = known or ", ".join(suffixes)
    files = {
        split: _expand(domain.name, split, getattr(domain, split), suffixes, known)
        for split in ("train", "validation")
    }
    noted: Reads = {} if reads is None else reads
    source = Source(
        key={**key, **{split: [_stamp(file) for file in files[split]] for split in files}},
        texts=lambda split: _texts(files[split], read, source),
        has_validation=bool(domain.validation),
        files={split: [file.path for file in files[split]] for split in files},
        reads=noted,
        remarks=remarks or Remarks(),
    )
    return source


def _texts(
    files: list[LocalFile], read: Callable[[LocalFile], Iterator[str]], source: Source
) -> Iterator[str]:
    for file in files:
        try:
            if file.from_glob and not file.path.stat().st_size:
                raise NoTextError(file.name)
            yield from read(file)
        except NoTextError:
            if not file.from_glob:
                raise
            source.remarks.empty_file(file.name)
        finally:  # who reads may have enough before the end
            if str(file.path) not in source.reads:
                note(file.path, source.reads)


def _expand(
    name: str, split: str, patterns: tuple[str, ...], suffixes: tuple[str, ...], known: str
) -> list[LocalFile]:
    """Files that the patterns name: in the order written, sorted within a glob, each once."""
    found: dict[Path, LocalFile] = {}
    for pattern in patterns:
        where = f"domain {name}: {split}: {pattern}"
        # A file whose name holds brackets or begins with ~ is meant as it is written.
        literal = os.path.lexists(pattern)
        pattern = pattern if literal else os.path.expanduser(pattern)
        is_glob = not literal and glob.has_magic(pattern)
        matches = [pattern]
        if is_glob:
            # A link that leads nowhere counts: its text must not be missing without a word.
            matches = sorted(p for p in glob.glob(pattern, recursive=True) if not os.path.isdir(p))
            if not matches:
                inside = "" if os.path.isabs(pattern) else f" in {os.getcwd()}"
                raise MissingInputError(f"{where}: the glob matches no file{inside}")
        for match in matches:
            at = where if where.endswith(f": {match}") else f"{where}: {match}"  # never twice
            file = _checked(match, at, suffixes, known, is_glob)
            if file.path not in found or not is_glob:
                found[file.path] = file
    return list(found.values())


def _checked(
    name: str, where: str, suffixes: tuple[str, ...], known: str, from_glob: bool
) -> LocalFile:
    path = Path(name)
    if path.is_dir():
        raise MissingInputError(f"{where} is a folder; write a glob such as {path}/*.jsonl")
    try:
        with open(path, "rb", opener=plain_input) as file:
            empty = not file.read(1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MissingInputError(f"{where}: {reason}") from error
    if empty and not from_glob:
        raise DataError(f"{where} is empty")
    kinds = [suffix for suffix in suffixes if name.lower().endswith(suffix)]
    if not kinds:
        raise DataError(f"{where} is of an unknown kind; known are {known}")
    return LocalFile(path.resolve(), name, max(kinds, key=len), from_glob)


def _stamp(file: LocalFile) -> list[Any]:
    """What changes when a file is edited (path, bytes, nanoseconds of the last change), and how it
    is read."""
    status = file.path.stat()
    return [str(file.path), status.st_size, status.st_mtime_ns, file.kind]


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
