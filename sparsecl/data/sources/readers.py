"""One file -> its documents. Every message names the file and the line or the byte.

Offsets count from 0 in the uncompressed file, lines from 1.
"""

import codecs
import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from sparsecl.data.sources.parquet import parquet_rows
from sparsecl.data.sources.reads import reading
from sparsecl.data.sources.records import (
    Fields,
    check_ratio,
    text_of,
    too_long,
)
from sparsecl.data.sources.source import Continuation
from sparsecl.errors import DataError, MissingInputError

_TEXT = (".txt", ".text", ".md", ".rst", ".tex", ".py")
_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*_TEXT, *_LINES, ".parquet", *(f"{s}.gz" for s in (*_TEXT, *_LINES)))
"""Kinds of file that can be read, in lower case."""

_CHUNK_BYTES = 1 << 20


def read_documents(path: Path, fields: Fields) -> Iterator[str]:
    """Documents of a file in order; its kind is told by its name.

    Raises:
        DataError: the content is broken, or holds no text at all.
        MissingInputError: the file cannot be read.
    """
    kind = path.name.lower().removesuffix(".gz")
    any_text, num_characters = False, 0
    with _named_errors(path):
        if kind.endswith(".parquet"):
            documents = parquet_rows(path, fields)
        elif kind.endswith(_LINES):
            documents = _json_lines(path, fields)
        else:
            documents = _plain(path, fields)
        packed = path.stat().st_size
        for document in documents:
            num_characters += len(document)
            check_ratio(path, packed, num_characters)
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


@contextlib.contextmanager
def _open(path: Path, fields: Fields) -> Iterator[IO[bytes]]:
    with reading(path, fields.reads) as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield file


def _json_lines(path: Path, fields: Fields) -> Iterator[str]:
    offset, number = 0, 0
    with _open(path, fields) as file:
        while line := file.readline(fields.max_record + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > fields.max_record:
                raise DataError(f"{where}: the line is {too_long(fields.max_record)}")
            raw = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            text = _decode(raw, where, offset + len(line) - len(raw), fields.replace)
            offset += len(line)
            if text.strip():
                yield text_of(_parse(text, where), where, fields)


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


def _plain(path: Path, fields: Fields) -> Iterator[str]:
    """Plain text, read in chunks; a piece ends at a separator or at the bound."""
    buffer, mark = "", fields.separator
    kind: type[str] = str  # of the next piece
    for chunk in _chunks(path, fields):
        searched = max(0, len(buffer) - len(mark) + 1)  # no separator begins before that
        buffer += chunk
        begin = 0
        while mark and (found := buffer.find(mark, max(begin, searched))) >= 0:
            yield kind(buffer[begin:found])
            begin, kind = found + len(mark), str
        # Characters are at most as many as bytes, so a buffer of max_bytes characters may be
        # more bytes; the cut into documents below the bound is made later, this one only
        # keeps a huge file from being held at once.
        while len(buffer) - begin > 2 * fields.max_bytes:
            limit = begin + fields.max_bytes
            end = buffer.rfind("\n", begin, limit) + 1 or limit
            yield kind(buffer[begin:end])
            begin, kind = end, Continuation
        buffer = buffer[begin:]
    yield kind(buffer)


def _chunks(path: Path, fields: Fields) -> Iterator[str]:
    replace = fields.replace
    decoder = codecs.getincrementaldecoder("utf-8")("replace" if replace else "strict")
    offset = 0
    with _open(path, fields) as file:
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
