"""UTF-8 text of a file, in chunks and in lines; and plain text -> its documents."""

import codecs
from collections.abc import Iterator

from sparsecl.data.sources.packed import opened
from sparsecl.data.sources.records import BadRowError, Fields, LocalFile, too_long
from sparsecl.data.sources.source import Continuation
from sparsecl.errors import DataError

_CHUNK_BYTES = 1 << 20


def plain_text(file: LocalFile, fields: Fields) -> Iterator[str]:
    """Documents of plain text, read in chunks; a piece ends at a separator or at the bound."""
    buffer, mark = "", fields.separator
    kind: type[str] = str  # of the next piece
    for chunk in text_chunks(file, fields):
        searched = max(0, len(buffer) - len(mark) + 1)  # no separator begins before that
        buffer += chunk
        begin = 0
        while mark and (found := buffer.find(mark, max(begin, searched))) >= 0:
            fields.remarks.separators += 1
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


def text_chunks(file: LocalFile, fields: Fields) -> Iterator[str]:
    """The text without its byte order mark, line ends of Windows as newlines.

    Raises:
        DataError: it is not UTF-8, or holds NUL.
    """
    replace = fields.replace
    decoder = codecs.getincrementaldecoder("utf-8")("replace" if replace else "strict")
    offset, held = 0, ""
    with opened(file, fields.reads) as stream:
        while True:
            chunk = stream.read(_CHUNK_BYTES)
            start = offset - len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise DataError(_not_utf8(file.name, start + error.start, byte)) from error
            if start == 0:
                text = text.removeprefix("\ufeff")
            text = held + _without_nul(text, file.name, offset, chunk, replace)
            held = "\r" if chunk and text.endswith("\r") else ""  # its \n may be in the next chunk
            yield text.removesuffix(held).replace("\r\n", "\n")
            offset += len(chunk)
            if not chunk:
                return


def lines(file: LocalFile, fields: Fields) -> Iterator[tuple[str, bytes, int]]:
    """(place, bytes, byte offset) of every line, its end included.

    A line over the bound comes without its rest: it is longer than fields.max_record.
    """
    offset, number = 0, 0
    with opened(file, fields.reads) as stream:
        while line := stream.readline(fields.max_record + 1):
            number += 1
            raw = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield f"{file.name}:{number}", raw, offset + len(line) - len(raw)
            offset += len(line)
            rest = line
            while len(line) > fields.max_record and rest and not rest.endswith(b"\n"):
                rest = stream.readline(_CHUNK_BYTES)
                offset += len(rest)


def decoded(line: bytes, where: str, offset: int, fields: Fields) -> str:
    """The text of a line.

    Raises:
        BadRowError: it is not UTF-8, holds NUL, or is too long.
    """
    if len(line) > fields.max_record:
        raise BadRowError(f"{where}: the line is {too_long(fields.max_record)}")
    try:
        text = line.decode("utf-8", "replace" if fields.replace else "strict")
    except UnicodeDecodeError as error:
        raise BadRowError(_not_utf8(where, offset + error.start, line[error.start])) from error
    return _without_nul(text, where, offset, line, fields.replace)


def _without_nul(text: str, where: str, offset: int, raw: bytes, replace: bool) -> str:
    if "\0" not in text:
        return text
    if not replace:
        raise BadRowError(
            f"{where}: NUL at byte offset {offset + raw.index(0)}: binary data or UTF-16? Convert "
            f"it to UTF-8, or set encoding_errors: replace"
        )
    return text.replace("\0", "\ufffd")


def _not_utf8(where: str, offset: int, byte: int) -> str:
    return (
        f"{where}: byte 0x{byte:02x} at byte offset {offset} is not UTF-8; convert the file, "
        f"or set encoding_errors: replace"
    )
