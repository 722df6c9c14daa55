"""A record (a line of JSON, a row) -> its text; and how much there may be of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsecl.data.sources.reads import Reads
from sparsecl.errors import DataError

# Text packs to a third, copies of one text to a hundredth. deflate stops at a thousandth, so a file
# that unpacks to more is made to fill a disk.
_MAX_RATIO = 500
_ALWAYS_ALLOWED = 64 << 20  # bytes of text, from a file of whatever size

RECORD_ROOM = 32
"""A book is a document of 10 MB where documents are cut at 1 MB."""


@dataclass(frozen=True)
class Fields:
    """How to read a file.

    Attributes:
        names: fields of a record that are joined by a newline.
        separator: parts the documents of a plain text file; empty: the file is one document.
        replace: bytes that are not UTF-8, NUL and lone surrogates become U+FFFD, not an error.
        max_bytes: longest document; longer plain text comes in pieces. A line of JSON and a row
            cannot be read in pieces: they may have RECORD_ROOM times as much, to be cut later.
        reads: where the sha256 of what was read is noted.
    """

    names: tuple[str, ...] = ("text",)
    separator: str = ""
    replace: bool = False
    max_bytes: int = 1_000_000
    reads: Reads = field(default_factory=dict)

    @property
    def max_record(self) -> int:
        """Bytes of a JSON line, characters of a row's text."""
        return RECORD_ROOM * self.max_bytes


def check_ratio(path: Path, packed: int, unpacked: int) -> None:
    """Refuse a file of `packed` bytes that unpacks to more than anybody writes."""
    if unpacked > max(_ALWAYS_ALLOWED, _MAX_RATIO * packed):
        raise DataError(
            f"{path}: unpacks to more than {_MAX_RATIO} times its size; if that is right, "
            f"unpack it first"
        )


def too_long(max_record: int) -> str:
    """Why a record is refused, and the way out."""
    return (
        f"longer than {max_record} bytes, {RECORD_ROOM} times data.max_document_bytes; "
        f"raise that, or cut it"
    )


def text_of(record: dict[str, Any], where: str, fields: Fields) -> str:
    """Text of a record; see `join_fields`."""
    return join_fields(
        record, where, fields.names, replace=fields.replace, max_record=fields.max_record
    )


def join_fields(
    record: dict[str, Any],
    where: str,
    names: tuple[str, ...],
    *,
    replace: bool = False,
    max_record: int | None = None,
) -> str:
    """Text of a record: the named fields, joined by a newline.

    Args:
        max_record: characters that they may have in all; None: any number.

    Raises:
        DataError: a field is missing, is not text, is too long, or holds what UTF-8 cannot.
    """
    parts, left = [], max_record
    for name in names:
        if name not in record:
            has = ", ".join(sorted(map(str, record))[:20]) or "none"
            raise DataError(f"{where}: no field {name!r} (text_field, columns); it has {has}")
        value = record[name]
        if not isinstance(value, str):
            raise DataError(f"{where}: field {name!r} must be text, got {type(value).__name__}")
        if left is not None:
            left -= len(value)
            if left < 0:
                raise DataError(f"{where}: field {name!r} is {too_long(max_record or 0)}")
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
