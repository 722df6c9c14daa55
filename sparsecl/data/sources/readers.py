"""One file -> its documents. Every message names the file and the line or the byte.

Offsets count from 0 in the uncompressed file, lines from 1.
"""

import codecs
import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sparsecl.errors import DataError, MissingInputError

_TEXT = (".txt", ".text", ".md", ".rst", ".tex", ".py")
_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*_TEXT, *_LINES, ".parquet", *(f"{s}.gz" for s in (*_TEXT, *_LINES)))
"""Kinds of file that can be read, in lower case."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Fields:
    """How to read a file.

    Attributes:
        names: fields of a record that are joined by a newline.
        separator: parts the documents of a plain text file; empty: the file is one document.
        replace: bytes that are not UTF-8, NUL and lone surrogates become U+FFFD, not an error.
        max_bytes: bound on the text that is held at a time; longer plain text comes in pieces.
    """

    names: tuple[str, ...] = ("text",)
    separator: str = ""
    replace: bool = False
    max_bytes: int = 1_000_000


def read_documents(path: Path, fields: Fields) -> Iterator[str]:
    """Documents of a file in order; its kind is told by its name.

    Raises:
        DataError: the content is broken, or holds no text at all.
        MissingInputError: the file cannot be read.
    """
    kind = path.name.lower().removesuffix(".gz")
    any_text = False
    with _named_errors(path):
        if kind.endswith(".parquet"):
            documents = _parquet(path, fields)
        elif kind.endswith(_LINES):
            documents = _json_lines(path, fields)
        else:
            documents = _plain(path, fields)
        for document in documents:
            any_text = any_text or not document.isspace() and bool(document)
            yield document
    if not any_text:
        raise DataError(f"{path}: holds no text")


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except EOFError as error:
        raise DataError(f"{path}: the gzip data is truncated; copy the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: broken gzip data ({error})") from error
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror or error}") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _json_lines(path: Path, fields: Fields) -> Iterator[str]:
    offset = 0
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            raw = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            text = _decode(raw, where, offset + len(line) - len(raw), fields.replace)
            offset += len(line)
            if text.strip():
                yield _from_record(_parse(text, where), where, fields)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: not JSON that can be read: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON object is expected, got {type(record).__name__}")
    return record


def _from_record(record: dict[str, Any], where: str, fields: Fields) -> str:
    return join_fields(record, where, fields.names, replace=fields.replace)


def join_fields(
    record: dict[str, Any], where: str, names: tuple[str, ...], *, replace: bool = False
) -> str:
    """Text of a record: the named fields, joined by a newline.

    Raises:
        DataError: a field is missing, is not text, or holds what UTF-8 cannot.
    """
    parts = []
    for name in names:
        if name not in record:
            has = ", ".join(sorted(map(str, record))[:20]) or "none"
            raise DataError(f"{where}: no field {name!r} (text_field, columns); it has {has}")
        value = record[name]
        if not isinstance(value, str):
            raise DataError(f"{where}: field {name!r} must be text, got {type(value).__name__}")
        parts.append(value)
    return _storable("\n".join(parts), where, replace)


def _storable(text: str, where: str, replace: bool) -> str:
    """Text without lone surrogates and NUL, which JSON can spell and a text must not hold."""
    try:
        text.encode()
        sound = "\0" not in text
    except UnicodeEncodeError:
        sound = False
    if sound:
        return text
    if not replace:
        raise DataError(
            f"{where}: the text holds NUL or half a surrogate pair; "
            f"set encoding_errors: replace to accept it"
        )
    pairs = text.replace("\0", "\ufffd").encode("utf-16-le", "surrogatepass")
    return pairs.decode("utf-16-le", "replace")


def _parquet(path: Path, fields: Fields) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        has = file.schema_arrow.names
        missing = [name for name in fields.names if name not in has]
        if missing:
            raise DataError(f"{path}: no column {missing[0]!r} (text_field, columns); it has {has}")
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=list(fields.names)):
            for record in batch.to_pylist():
                row += 1
                yield _from_record(record, f"{path}: row {row}", fields)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: broken parquet data ({reason})") from error


def _plain(path: Path, fields: Fields) -> Iterator[str]:
    """Plain text, read in chunks; a piece ends at a separator or at the bound."""
    buffer = ""
    for chunk in _chunks(path, fields.replace):
        buffer += chunk
        if fields.separator:
            *documents, buffer = buffer.split(fields.separator)
            yield from documents
        # Characters are at most as many as bytes, so a buffer of max_bytes characters may be
        # more bytes; the cut into documents below the bound is made later, this one only
        # keeps a huge file from being held at once.
        while len(buffer) > 2 * fields.max_bytes:
            end = buffer.rfind("\n", 0, fields.max_bytes) + 1 or fields.max_bytes
            yield buffer[:end]
            buffer = buffer[end:]
    yield buffer


def _chunks(path: Path, replace: bool) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace" if replace else "strict")
    offset = 0
    with _open(path) as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            start = offset - len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(
                    str(path), start + error.start, error.object[error.start]
                ) from error
            if start == 0:
                text = text.removeprefix("\ufeff")
            yield _without_nul(text, str(path), offset, chunk, replace)
            offset += len(chunk)
            if not chunk:
                return


def _decode(line: bytes, where: str, offset: int, replace: bool) -> str:
    try:
        text = line.decode("utf-8", "replace" if replace else "strict")
    except UnicodeDecodeError as error:
        raise _not_utf8(where, offset + error.start, line[error.start]) from error
    return _without_nul(text, where, offset, line, replace)


def _without_nul(text: str, where: str, offset: int, raw: bytes, replace: bool) -> str:
    if "\0" not in text:
        return text
    if not replace:
        raise DataError(
            f"{where}: NUL at byte offset {offset + raw.index(0)}: binary data or UTF-16? Convert "
            f"it to UTF-8, or set encoding_errors: replace"
        )
    return text.replace("\0", "\ufffd")


def _not_utf8(where: str, offset: int, byte: int) -> DataError:
    return DataError(
        f"{where}: byte 0x{byte:02x} at byte offset {offset} is not UTF-8; convert the file, "
        f"or set encoding_errors: replace"
    )
