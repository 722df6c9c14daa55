"""Source `hf`: Hugging Face datasets, from the hub or from a local folder.

The only file that imports `datasets`, and only when such a domain is read. What it takes to read a
row is its own affair; a row that is too long is refused when it comes. Code that comes with a
dataset is never run: `trust_remote_code` is not passed, and `datasets` refuses without it.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsecl.data.config import DomainConfig
from sparsecl.data.sources.reads import Reads, note
from sparsecl.data.sources.records import RECORD_ROOM, join_fields
from sparsecl.data.sources.source import Source
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.files import cannot_write

# What Dataset.save_to_disk and DatasetDict.save_to_disk leave in a folder.
_SAVED_MARKS = ("state.json", "dataset_dict.json")

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nobody gets these from reading


def open_source(domain: DomainConfig, *, seed: int, max_document_bytes: int) -> Source:
    """Describe a dataset; it is loaded when its texts are read.

    Raises:
        UserError: if a dataset of the hub has no revision.
        MissingInputError: if `path` looks like a local folder and is none.
    """
    del seed
    path = str(domain.path)
    folder = Path(path)
    if folder.is_dir():
        stamps = [_stamp(folder, p) for p in sorted(folder.rglob("*")) if p.is_file()]
        if not stamps:
            raise MissingInputError(f"domain {domain.name}: path: {path} is an empty folder")
    elif folder.exists():
        raise MissingInputError(
            f"domain {domain.name}: path: {path} is a file; give its folder, or use source: files"
        )
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise MissingInputError(f"domain {domain.name}: path: {path}: no such folder")
    elif not domain.revision:
        raise UserError(
            f"domain {domain.name}: path: {path} is on the hub and needs `revision` (a commit or "
            f"tag), so that a repeated run reads the same text"
        )
    else:
        stamps = []
    key = {
        "source": "hf",
        "path": str(folder.resolve()) if stamps else path,
        "files": stamps,
        "fields": list(_names(domain)),
        "config_name": domain.config_name,
        "split": domain.split,
        "validation_split": domain.validation_split,
        "revision": domain.revision,
        "data_files": list(domain.data_files),
    }
    if domain.encoding_errors != "strict":
        key["encoding_errors"] = domain.encoding_errors
    has_validation = domain.validation_split is not None

    reads: Reads = {}

    def texts(split: str) -> Iterator[str]:
        name = domain.split if split == "train" else domain.validation_split
        if name is None:
            return
        if not reads:  # what the hub has under a revision cannot be edited
            for file in (folder / stamp[0] for stamp in stamps):
                note(file.resolve(), reads)
        yield from _documents(domain, name, RECORD_ROOM * max_document_bytes)

    return Source(key=key, texts=texts, has_validation=has_validation, reads=reads)


def _names(domain: DomainConfig) -> tuple[str, ...]:
    return domain.columns or (domain.text_field,)


def _stamp(folder: Path, path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.relative_to(folder)), status.st_size, status.st_mtime_ns]


def _documents(domain: DomainConfig, split: str, max_record: int) -> Iterator[str]:
    # Not before here: reading it takes a second, and it looks at the environment once.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets.config
    import datasets.exceptions

    where = f"domain {domain.name}: {domain.path}: split {split}"
    names, replace = _names(domain), domain.encoding_errors == "replace"
    try:
        for number, record in enumerate(_load(domain, split)):
            at = f"{where}: row {number}"
            yield join_fields(record, at, names, replace=replace, max_record=max_record)
    except UserError:
        raise
    except (
        *(OSError, ValueError, KeyError, RuntimeError, NotImplementedError),
        datasets.exceptions.DatasetsError,
    ) as error:
        raise _named(error, where, Path(datasets.config.HF_DATASETS_CACHE)) from error


def _named(error: Exception, where: str, cache: Path) -> UserError:
    """What `datasets` raises, or raised it for: its cache cannot be written, or the data is bad."""
    cause: BaseException | None = error
    while cause is not None:
        inside = isinstance(cause, OSError) and str(cause.filename or "").startswith(f"{cache}/")
        if isinstance(cause, OSError) and (inside or cause.errno in _WRITING):
            return cannot_write(cache, cause, f"{where}: the cache of `datasets`")
        if "Not enough disk space" in str(cause):  # it has counted before it writes
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return cannot_write(cache, full, f"{where}: the cache of `datasets`")
        cause = cause.__cause__ or cause.__context__
    # An OSError is every failure to reach or find a dataset.
    kind = MissingInputError if isinstance(error, OSError) else DataError
    return kind(f"{where}: {_first_line(error)}")


def _load(domain: DomainConfig, split: str) -> Any:
    """Rows of a split as dictionaries, lazily."""
    import datasets

    path = str(domain.path)
    if any((Path(path) / mark).is_file() for mark in _SAVED_MARKS):
        saved = datasets.load_from_disk(path)
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise DataError(f"domain {domain.name}: split={split!r}; it has {sorted(saved)}")
            return saved[split]
        if split != "train":
            raise DataError(f"domain {domain.name}: split={split!r}: {path} holds one split, train")
        return saved
    return datasets.load_dataset(
        path,
        domain.config_name,
        split=split,
        revision=domain.revision,
        streaming=domain.streaming,
        data_files=list(domain.data_files) or None,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
