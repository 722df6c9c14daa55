"""JSON -> the text of its records: one object a line, or one array of objects."""

import json
import re
from collections.abc import Iterator
from typing import Any

from sparsecl.data.sources.packed import opened
from sparsecl.data.sources.plain import decoded, lines, text_chunks
from sparsecl.data.sources.records import BadRowError, Fields, LocalFile, too_long
from sparsecl.errors import DataError

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_HEAD_BYTES = 1 << 16
_LONGEST_WORD = 16  # what a cut through -Infinity or \ud83d\ude00 leaves is shorter


def json_lines(file: LocalFile, fields: Fields) -> Iterator[str]:
    """The text of every line."""
    for where, line, offset in lines(file, fields):
        with fields.row():
            text = decoded(line, where, offset, fields)
            if text.strip():
                yield fields.text_of(_object(text, where), where)


def json_items(file: LocalFile, fields: Fields) -> Iterator[str]:
    """The text of every object of an array, or of every line: both are found under `.json`."""
    with opened(file, {}) as stream:
        head = stream.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:1] != b"[":
        yield from json_lines(file, fields)
        return
    for number, record in enumerate(_items(file, fields), start=1):
        where = f"{file.name}: item {number}"
        with fields.row():
            if not isinstance(record, dict):
                raise BadRowError(_no_object(where, record))
            yield fields.text_of(record, where)


def _items(file: LocalFile, fields: Fields) -> Iterator[Any]:
    """The items of an array, one at a time in memory.

    An item that does not end in the buffer is read again with twice as much of it, up to the bound
    of a record. Where a broken one ends is not known, so it ends the file.
    """
    buffer = _Buffer(text_chunks(file, fields), fields.max_record)
    buffer.skip("[")
    after, number = buffer.next(), 0
    if after == "]":
        buffer.skip(after)
    while after != "]":
        number += 1
        where = f"{file.name}: item {number}"
        yield buffer.item(where)
        after = buffer.next()
        if after not in [",", "]"]:
            raise DataError(f"{where}: the array is not closed, or a comma is missing behind it")
        buffer.skip(after)
    if buffer.next():
        raise DataError(f"{file.name}: not JSON: there is more behind the array")


class _Buffer:
    """The unread text of a file, as much of it as is needed."""

    def __init__(self, chunks: Iterator[str], limit: int) -> None:
        self._chunks, self._limit = chunks, limit
        self._text, self._at, self._ended = "", 0, False

    def next(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or not self._fill(1):
                return self._text[self._at : self._at + 1]

    def skip(self, mark: str) -> None:
        """Go past `mark`, which is next."""
        found = self.next()
        assert found == mark
        self._at += 1

    def item(self, where: str) -> Any:
        """The value that is next."""
        self.next()
        while True:
            unread = len(self._text) - self._at
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                whole = end < len(self._text)  # a number may end where the buffer does
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(self._text) - _LONGEST_WORD
                if not near_end and not error.msg.startswith("Unterminated"):
                    raise DataError(_broken(where, error, self._at)) from error
                value, end, whole = error, len(self._text), False
            except (RecursionError, ValueError) as error:
                raise DataError(f"{where}: not JSON that can be read: {error}") from error
            if end - self._at > self._limit:
                raise DataError(f"{where}: is {too_long(self._limit)}")
            if not whole and self._fill(2 * unread):
                continue
            if isinstance(value, json.JSONDecodeError):
                raise DataError(_broken(where, value, self._at)) from value
            self._at = end
            return value

    def _fill(self, wanted: int) -> bool:
        """Read until `wanted` characters are there; False if there are no more than before."""
        parts = [self._text[self._at :]]
        size = before = len(parts[0])
        while size < wanted and not self._ended:
            chunk = next(self._chunks, None)
            self._ended = chunk is None
            parts.append(chunk or "")
            size += len(parts[-1])
        self._text, self._at = "".join(parts), 0
        return size > before


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRowError(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        raise BadRowError(f"{where}: not JSON that can be read: {error}") from error
    if not isinstance(record, dict):
        raise BadRowError(_no_object(where, record))
    return record


def _broken(where: str, error: json.JSONDecodeError, begin: int) -> str:
    return f"{where}: not JSON: {error.msg} (its character {error.pos - begin + 1})"


def _no_object(where: str, record: Any) -> str:
    return f"{where}: a JSON object is expected, got {type(record).__name__}"
