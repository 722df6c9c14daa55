"""A parquet file -> its documents, a few rows at a time.

What a file says of its sizes is checked before anything is unpacked, lengths before a string is
made. A value that all rows share is stored once (a dictionary) and stays so. A page is unpacked as
a whole: of a file that lies about its sizes a page takes up to 2 GiB, the format's own bound.
"""

from collections.abc import Iterator
from typing import Any

from sparsecl.data.sources.reads import note
from sparsecl.data.sources.records import (
    BadRowError,
    Fields,
    LocalFile,
    check_ratio,
    no_field,
    too_long,
)
from sparsecl.errors import DataError

_MAX_ROWS = 256
_BATCH_BYTES = 16 << 20


def parquet_rows(file: LocalFile, fields: Fields) -> Iterator[str]:
    """The text of every row.

    Raises:
        DataError: the file is broken, lacks a column, or a row is longer than fields.max_record.
    """
    import pyarrow

    note(file.path, fields.reads)
    try:
        row = 0
        for columns in _batches(file, fields):
            lengths = {name: _lengths(column) for name, column in columns.items()}
            for place in range(len(columns[fields.names[0]])):
                row += 1
                where = f"{file.name}: row {row}"
                with fields.row():
                    for name in fields.names:
                        if lengths[name] and (lengths[name][place] or 0) > fields.max_record:
                            limit = too_long(fields.max_record)
                            raise BadRowError(f"{where}: field {name!r} is {limit}")
                    record = {name: columns[name][place].as_py() for name in fields.names}
                    yield fields.text_of(record, where)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file.name}: broken parquet data ({reason})") from error


def _batches(file: LocalFile, fields: Fields) -> Iterator[dict[str, Any]]:
    """The columns of a few rows, by the names that were asked for."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path) as plain:
        schema, metadata = plain.schema_arrow, plain.metadata
    paths = {name: _path(schema, name) for name in fields.names}
    for name, path in paths.items():
        if not path:
            raise DataError(f"{file.name}: {no_field(name, schema.names)}")
    names = [".".join(path) for path in paths.values()]
    groups = [_chunks(metadata.row_group(g), names) for g in range(metadata.num_row_groups)]
    sizes = [sum(chunk.total_uncompressed_size for chunk in group) for group in groups]
    check_ratio(file.name, file.path.stat().st_size, sum(sizes))
    coded = {c.path_in_schema for group in groups for c in group if c.has_dictionary_page}
    with pyarrow.parquet.ParquetFile(
        file.path, read_dictionary=sorted(coded), pre_buffer=False, buffer_size=1 << 20
    ) as opened:
        for group, size in enumerate(sizes):
            mean = size // max(1, metadata.row_group(group).num_rows)
            if mean > fields.max_record * len(names):
                limit = too_long(fields.max_record)
                raise DataError(f"{file.name}: row group {group}: the mean row is {limit}")
            rows = min(_MAX_ROWS, max(1, _BATCH_BYTES // max(1, mean)))
            for batch in opened.iter_batches(batch_size=rows, row_groups=[group], columns=names):
                yield {name: _column(batch, path) for name, path in paths.items()}


def _path(fields: Any, name: str) -> tuple[str, ...]:
    """Where a column is in a schema or a struct: `a.b` is b in a, unless one has that very name."""
    import pyarrow

    head = name
    while head:
        place = fields.get_field_index(head)
        if place >= 0 and head == name:
            return (name,)
        if place >= 0 and pyarrow.types.is_struct(fields.field(place).type):
            rest = _path(fields.field(place).type, name[len(head) + 1 :])
            if rest:
                return (head, *rest)
        head = head.rpartition(".")[0]
    return ()


def _column(batch: Any, path: tuple[str, ...]) -> Any:
    import pyarrow.compute

    column = batch[path[0]]
    return pyarrow.compute.struct_field(column, list(path[1:])) if path[1:] else column  # type: ignore[attr-defined]


def _chunks(group: Any, names: list[str]) -> list[Any]:
    columns = [group.column(place) for place in range(group.num_columns)]
    return [column for column in columns if column.path_in_schema in names]


def _lengths(column: Any) -> list[int | None]:
    """Of the strings of a column; empty if it holds others, which is told when a row is read."""
    import pyarrow
    import pyarrow.compute

    values = column.dictionary if isinstance(column, pyarrow.DictionaryArray) else column
    kind = values.type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        return []
    lengths = pyarrow.compute.binary_length(values)  # type: ignore[attr-defined]
    if values is not column:
        lengths = lengths.take(column.indices)
    return lengths.to_pylist()
