"""One file -> its documents. Every message names the file and the line, the item or the byte.

The kind is told by the name; what nobody knows is never taken for text. Offsets count from 0 in the
unpacked file, lines and items from 1.
"""

from collections.abc import Callable, Iterator

from sparsecl.data.sources.csv_rows import comma_rows, tab_rows
from sparsecl.data.sources.json_records import json_items, json_lines
from sparsecl.data.sources.packed import PACKINGS
from sparsecl.data.sources.parquet import parquet_rows
from sparsecl.data.sources.plain import plain_text
from sparsecl.data.sources.records import Fields, LocalFile, NoTextError, check_ratio
from sparsecl.errors import MissingInputError

Reader = Callable[[LocalFile, Fields], Iterator[str]]

_STREAMS: dict[str, Reader] = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst", ".tex", ".py"), plain_text),
    **dict.fromkeys((".jsonl", ".ndjson"), json_lines),
    ".json": json_items,
    ".csv": comma_rows,
    ".tsv": tab_rows,
}
READERS: dict[str, Reader] = {
    **_STREAMS,
    ".parquet": parquet_rows,
    **{f"{kind}{packing}": read for kind, read in _STREAMS.items() for packing in PACKINGS},
}
"""Suffix of a name in lower case -> what reads such a file."""

KNOWN = f"{', '.join([*_STREAMS, '.parquet'])}; all but the last also with {', '.join(PACKINGS)}"


def read_documents(file: LocalFile, fields: Fields) -> Iterator[str]:
    """Documents of a file in order.

    Raises:
        DataError: the content is broken.
        NoTextError: it holds no text at all.
        MissingInputError: the file cannot be read.
    """
    any_text, num_characters = False, 0
    try:
        packed = file.path.stat().st_size
        for document in READERS[file.kind](file, fields):
            num_characters += len(document)
            check_ratio(file.name, packed, num_characters)
            any_text = any_text or not document.isspace() and bool(document)
            yield document
    except OSError as error:
        raise MissingInputError(f"{file.name}: {error.strerror or error}") from error
    if not any_text:
        raise NoTextError(f"{file.name}: holds no text")
