"""CSV and TSV -> the text of every row. The first row names the columns.

Cells are quoted as spreadsheets do it: a quoted one may hold line ends, and "" is a quotation mark.
"""

import csv
from collections.abc import Iterator

from sparsecl.data.sources.plain import decoded, lines
from sparsecl.data.sources.records import (
    BadRowError,
    Fields,
    LocalFile,
    no_field,
    too_long,
)
from sparsecl.errors import DataError


def comma_rows(file: LocalFile, fields: Fields) -> Iterator[str]:
    """The text of every row of a .csv file."""
    return _texts(file, fields, "excel")


def tab_rows(file: LocalFile, fields: Fields) -> Iterator[str]:
    """The text of every row of a .tsv file."""
    return _texts(file, fields, "excel-tab")


def _texts(file: LocalFile, fields: Fields, dialect: str) -> Iterator[str]:
    rows = _rows(file, fields, dialect)
    _, head = next(rows, ("", []))
    for name in fields.names if head else ():
        if head.count(name) != 1:
            why = f"two columns {name!r}" if name in head else no_field(name, head)
            raise DataError(f"{file.name}: {why}")
    for where, row in rows:
        with fields.row():
            if len(row) != len(head):
                raise BadRowError(f"{where}: {len(row)} cells, the first row has {len(head)}")
            yield fields.text_of(dict(zip(head, row, strict=True)), where)


def _rows(file: LocalFile, fields: Fields, dialect: str) -> Iterator[tuple[str, list[str]]]:
    """(place of its first line, cells) of every row that is not blank.

    A quotation mark too many or too few takes other rows along, so it ends the file, as does a row
    over the bound: it is never just left out.
    """
    csv.field_size_limit(fields.max_record)  # the default refuses cells of more than 128 KiB
    begin, size = "", 0

    def fed() -> Iterator[str]:
        nonlocal begin, size
        for where, line, offset in lines(file, fields):
            begin = begin or where
            size += len(line)
            if size > fields.max_record:
                raise DataError(f"{begin}: the row is {too_long(fields.max_record)}")
            try:
                yield decoded(line, where, offset, fields).replace("\r\n", "\n")
            except BadRowError as error:
                raise DataError(str(error)) from error

    reader = csv.reader(fed(), dialect, strict=True)
    while True:
        begin, size = "", 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{begin or file.name}: not CSV: {error}") from error
        if row:
            yield begin, row
