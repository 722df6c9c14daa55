"""A record (a line of JSON, a row) -> its text; and how much there may be of it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsecl.data.sources.reads import Reads
from sparsecl.data.sources.remarks import Remarks
from sparsecl.errors import DataError

# Text packs to a third, copies of one text to a hundredth. deflate stops at a thousandth, so a file
# that unpacks to more is made to fill a disk.
_MAX_RATIO = 500
_ALWAYS_ALLOWED = 64 << 20  # bytes of text, from a file of whatever size

RECORD_ROOM = 32
"""A book is a document of 10 MB where documents are cut at 1 MB."""


class BadRowError(DataError):
    """One row cannot be used; the rows after it can be read all the same."""


class NoTextError(DataError):
    """A file holds no text at all."""


@dataclass(frozen=True)
class LocalFile:
    """A file of a domain.

    Attributes:
        path: what is opened; links are followed, so that a file with two names is one.
        name: as the config or a glob has it, for messages.
        kind: the suffix of `name`, in lower case. Caches link a name to a file without any suffix,
            so `path` cannot tell it.
        from_glob: it is one of many, and may be empty.
    """

    path: Path
    name: str
    kind: str
    from_glob: bool = False


@dataclass(frozen=True)
class Fields:
    """How to read a file.

    Attributes:
        names: fields of a record that are joined by a newline.
        separator: parts the documents of a plain text file; empty: the file is one document.
        replace: bytes that are not UTF-8, NUL and lone surrogates become U+FFFD, not an error.
        skip: bad rows are counted and left out.
        max_bytes: longest document; longer plain text comes in pieces. A line of JSON and a row
            cannot be read in pieces: they may have RECORD_ROOM times as much, to be cut later.
        reads: where the sha256 of what was read is noted.
        remarks: where it is noted what was left out.
    """

    names: tuple[str, ...] = ("text",)
    separator: str = ""
    replace: bool = False
    skip: bool = False
    max_bytes: int = 1_000_000
    reads: Reads = field(default_factory=dict)
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def max_record(self) -> int:
        """Bytes of a JSON line or a row, characters of a row's text."""
        return RECORD_ROOM * self.max_bytes

    @contextlib.contextmanager
    def row(self) -> Iterator[None]:
        """Read one row in here: if it is bad, the block is left, or the way out is said."""
        try:
            yield
        except BadRowError as error:
            if not self.skip:
                raise DataError(f"{error}; on_bad_row: skip leaves such rows out") from error
            self.remarks.bad_row(str(error))

    def text_of(self, record: dict[str, Any], where: str) -> str:
        """Text of a record; see `join_fields`."""
        return join_fields(
            record, where, self.names, replace=self.replace, max_record=self.max_record
        )


def check_ratio(name: str, packed: int, unpacked: int) -> None:
    """Refuse a file of `packed` bytes that unpacks to more than anybody writes."""
    if unpacked > max(_ALWAYS_ALLOWED, _MAX_RATIO * packed):
        raise DataError(
            f"{name}: unpacks to more than {_MAX_RATIO} times its size; if that is right, "
            f"unpack it first"
        )


def too_long(max_record: int) -> str:
    """Why a record is refused, and the way out."""
    return (
        f"longer than {max_record} bytes, {RECORD_ROOM} times data.max_document_bytes; "
        f"raise that, or cut it"
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
        BadRowError: a field is missing, is not text, is too long, or holds what UTF-8 cannot.
    """
    parts, left = [], max_record
    for name in names:
        found = values(record, name)
        if not found:
            raise BadRowError(f"{where}: {no_field(name, record)}")
        value = found[0]
        if not isinstance(value, str):
            raise BadRowError(f"{where}: field {name!r} must be text, got {type(value).__name__}")
        if left is not None:
            left -= len(value)
            if left < 0:
                raise BadRowError(f"{where}: field {name!r} is {too_long(max_record or 0)}")
        parts.append(value)
    return _storable("\n".join(parts), where, replace)


def values(record: dict[str, Any], name: str) -> list[Any]:
    """The value of a field, in a list; empty if there is none.

    `a.b` is the field b of the field a, unless a field of that very name is there.
    """
    if name in record:
        return [record[name]]
    head = name
    while "." in head:
        head = head.rpartition(".")[0]
        inner = record.get(head)
        if isinstance(inner, dict) and (found := values(inner, name[len(head) + 1 :])):
            return found
    return []


def no_field(name: str, has: Any) -> str:
    """That a field is missing, and which ones there are."""
    shown = ", ".join(sorted(map(str, has))[:20]) or "none"
    return f"no field {name!r} (text_field, columns); it has {shown}"


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
        raise BadRowError(
            f"{where}: the text holds NUL or half a surrogate pair; "
            f"set encoding_errors: replace to accept it"
        )
    pairs = text.replace("\0", "\ufffd").encode("utf-16-le", "surrogatepass")
    return pairs.decode("utf-16-le", "replace")
