"""A parquet file -> its documents, a few rows at a time.

What a file says of its sizes is checked before anything is unpacked, lengths before a string is
made. A value that all rows share is stored once (a dictionary) and stays so. A page is unpacked as
a whole: of a file that lies about its sizes a page takes up to 2 GiB, the format's own bound.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsecl.data.sources.reads import note
from sparsecl.data.sources.records import Fields, check_ratio, text_of, too_long
from sparsecl.errors import DataError

_MAX_ROWS = 256
_BATCH_BYTES = 16 << 20


def parquet_rows(path: Path, fields: Fields) -> Iterator[str]:
    """The text of every row.

    Raises:
        DataError: the file is broken, lacks a column, or a row is longer than fields.max_record.
    """
    import pyarrow

    note(path, fields.reads)
    try:
        row = 0
        for batch in _batches(path, fields):
            for name in fields.names:
                _check_lengths(batch[name], f"{path}: row", row, name, fields)
            for place in range(batch.num_rows):
                row += 1
                record = {name: batch[name][place].as_py() for name in fields.names}
                yield text_of(record, f"{path}: row {row}", fields)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: broken parquet data ({reason})") from error


def _batches(path: Path, fields: Fields) -> Iterator[Any]:
    import pyarrow.parquet

    names = list(fields.names)
    with pyarrow.parquet.ParquetFile(path) as plain:
        has, metadata = plain.schema_arrow.names, plain.metadata
    missing = [name for name in names if name not in has]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r} (text_field, columns); it has {has}")
    groups = [_chunks(metadata.row_group(g), names) for g in range(metadata.num_row_groups)]
    sizes = [sum(chunk.total_uncompressed_size for chunk in group) for group in groups]
    check_ratio(path, path.stat().st_size, sum(sizes))
    coded = {c.path_in_schema for group in groups for c in group if c.has_dictionary_page}
    with pyarrow.parquet.ParquetFile(
        path, read_dictionary=sorted(coded), pre_buffer=False, buffer_size=1 << 20
    ) as file:
        for group, size in enumerate(sizes):
            mean = size // max(1, metadata.row_group(group).num_rows)
            if mean > fields.max_record * len(names):
                limit = too_long(fields.max_record)
                raise DataError(f"{path}: row group {group}: the mean row is {limit}")
            rows = min(_MAX_ROWS, max(1, _BATCH_BYTES // max(1, mean)))
            yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=names)


def _chunks(group: Any, names: list[str]) -> list[Any]:
    columns = [group.column(place) for place in range(group.num_columns)]
    return [column for column in columns if column.path_in_schema in names]


def _check_lengths(column: Any, where: str, row: int, name: str, fields: Fields) -> None:
    """Of a column of strings; what holds others is told when a row is read."""
    import pyarrow
    import pyarrow.compute

    values = column.dictionary if isinstance(column, pyarrow.DictionaryArray) else column
    kind = values.type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        return
    lengths = pyarrow.compute.binary_length(values)  # type: ignore[attr-defined]
    if values is not column:
        lengths = lengths.take(column.indices)
    for place, length in enumerate(lengths.to_pylist()):
        if (length or 0) > fields.max_record:
            limit = too_long(fields.max_record)
            raise DataError(f"{where} {row + place + 1}: field {name!r} is {limit}")
