"""Source `hf`: Hugging Face datasets, from the hub or from a local folder.

The only file that imports `datasets`, and only when such a domain is read. What it takes to read a
row is its own affair; a row that is too long is refused when it comes. Code that comes with a
dataset is never run: `trust_remote_code` is not passed, and `datasets` refuses without it.
"""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from sparsecl.config_nodes import one_line
from sparsecl.data.config import DomainConfig
from sparsecl.data.sources.reads import note
from sparsecl.data.sources.records import Fields
from sparsecl.data.sources.source import Source
from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.files import cannot_write, sha256_text

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
    path = os.path.expanduser(str(domain.path))
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
        "fields": list(domain.columns or (domain.text_field,)),
        "config_name": domain.config_name,
        "split": domain.split,
        "validation_split": domain.validation_split,
        "revision": domain.revision,
        "data_files": list(domain.data_files),
    }
    if domain.encoding_errors != "strict":
        key["encoding_errors"] = domain.encoding_errors
    if domain.on_bad_row != "error":
        key["on_bad_row"] = domain.on_bad_row
    fields = Fields(
        names=domain.columns or (domain.text_field,),
        replace=domain.encoding_errors == "replace",
        skip=domain.on_bad_row == "skip",
        max_bytes=max_document_bytes,
    )

    def texts(split: str) -> Iterator[str]:
        name = domain.split if split == "train" else domain.validation_split
        if name is None:
            return
        if not fields.reads:  # what the hub has under a revision cannot be edited
            for file in (folder / stamp[0] for stamp in stamps):
                note(file.resolve(), fields.reads)
        where = f"domain {domain.name}: {domain.path}: split {name}"
        for number, record in enumerate(_rows(domain, path, name, fields.names, where)):
            with fields.row():
                yield fields.text_of(record, f"{where}: row {number}")

    return Source(
        key=key,
        texts=texts,
        has_validation=domain.validation_split is not None,
        reads=fields.reads,
        remarks=fields.remarks,
    )


def _stamp(folder: Path, path: Path) -> list[Any]:
    status = path.stat()
    return [str(path.relative_to(folder)), status.st_size, status.st_mtime_ns]


def _rows(
    domain: DomainConfig, path: str, split: str, names: tuple[str, ...], where: str
) -> Iterator[dict[str, Any]]:
    """The rows of a split. What `datasets` raises is one line."""
    # Not before here: reading it takes a second, and it looks at the environment once.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets.config

    try:
        # Nothing of ours runs in here, so whatever comes is its doing or the data's: it has no one
        # base class, and raises what pandas, Arrow, fsspec and its decoders raise.
        yield from _load(domain, path, split, names)
    except (UserError, MemoryError):
        raise
    except Exception as error:
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
    said = _said(error)
    if isinstance(error, OSError):
        return MissingInputError(f"{where}: {said}")
    return DataError(f"{where}: {said}{_way_out(said)}")


def _load(domain: DomainConfig, path: str, split: str, names: tuple[str, ...]) -> Any:
    """Rows of a split as dictionaries, lazily."""
    import datasets
    import datasets.config

    if any((Path(path) / mark).is_file() for mark in _SAVED_MARKS):
        return _few(_saved(domain, path, split), names)
    builder = datasets.load_dataset_builder(
        path,
        domain.config_name,
        revision=domain.revision,
        data_files=list(domain.data_files) or None,
        # Of its own: what is kept has only these columns.
        cache_dir=str(Path(datasets.config.HF_DATASETS_CACHE) / "sparsecl" / _digest(names)),
    )
    _narrow(builder, names)
    if domain.streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return _few(builder.as_dataset(split=split), names)


def _few(dataset: Any, names: tuple[str, ...]) -> Any:
    """What is not asked for is not decoded either."""
    return dataset.select_columns(_asked(dataset.column_names, names))


def _saved(domain: DomainConfig, path: str, split: str) -> Any:
    """A split of what `save_to_disk` has left."""
    import datasets

    saved = datasets.load_from_disk(path)
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(f"domain {domain.name}: split={split!r}; it has {sorted(saved)}")
        return saved[split]
    if split != "train":
        raise DataError(f"domain {domain.name}: split={split!r}: {path} holds one split, train")
    return saved


def _narrow(builder: Any, names: tuple[str, ...]) -> None:
    """Make a builder of `datasets` leave out the columns that nobody asked for.

    Otherwise it gives all files the columns of the first one, and fails at a file in which any of
    them has another type. It has an option for it with parquet only.
    """
    from datasets import Features

    cast, find = getattr(builder, "_cast_table", None), builder._split_generators
    if cast is None:  # it does not read tables
        return

    def narrow() -> None:
        if builder.info.features is not None:
            has = builder.info.features
            builder.info.features = Features({name: has[name] for name in _asked(has, names)})
            if hasattr(builder.config, "columns"):
                builder.config.columns = list(builder.info.features)

    def cast_narrowed(table: Any, *args: Any, **options: Any) -> Any:
        return cast(table.select(_asked(table.column_names, names)), *args, **options)

    def find_narrowed(*args: Any, **options: Any) -> Any:
        found = find(*args, **options)
        narrow()  # it may have looked into the first file
        return found

    narrow()
    builder._cast_table, builder._split_generators = cast_narrowed, find_narrowed


def _asked(columns: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """The columns that hold the fields `names`; all if none does, so that a message can tell."""
    columns = list(columns)
    return [c for c in columns if any(f"{n}.".startswith(f"{c}.") for n in names)] or columns


def _digest(names: tuple[str, ...]) -> str:
    return sha256_text(json.dumps(names))[:16]


def _said(error: Exception) -> str:
    """Its message in one line, that of what it came from, and the file that was read."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    parts = dict.fromkeys((_line(error), *_files(root.__traceback__), _line(root)))
    return one_line(": ".join(parts))


def _line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {words if len(words) <= 500 else words[:497] + '...'}"


def _files(trace: TracebackType | None) -> Iterator[str]:
    """The file that a builder was reading, which `datasets` writes into its log only."""
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        if frame.f_code.co_name == "_generate_tables" and "file" in frame.f_locals:
            file = frame.f_locals["file"]
            yield str(file.get_origin() if hasattr(file, "get_origin") else file)


def _way_out(said: str) -> str:
    if "Config" in said:
        return "; choose one by config_name"
    if "split" in said.lower():
        return "; choose one by split, validation_split"
    return "; data_files leaves files out, source: files with on_bad_row: skip leaves rows out"
