"""results.json: whether a run has ended, and whether its records are those that it was made of.

No figure is taken from it, for all of them follow from scalars.jsonl. It is the last file that a
run writes, so it marks the end, and it is what people and other programs read.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsecl.config_nodes import one_line
from sparsecl.errors import DataError
from sparsecl.metrics.records import SCALARS, RunRecords, read_records
from sparsecl.opening import read_plain

RESULTS = "results.json"
AGAIN = "Start the run or its study again: it is made anew from scalars.jsonl."


def has_ended(run: Path) -> bool:
    """True if there is a whole results.json.

    Raises:
        DataError: there is one that is damaged.
    """
    return os.path.lexists(run / RESULTS) and _read(run / RESULTS) is not None


def read_to_end(run: Path) -> RunRecords:
    """The records of a run folder in which a results.json lies, whatever is in that.

    Raises:
        MissingInputError: there are none.
        DataError: they are damaged, or have no end.
    """
    records = read_records(run)
    if not records.ended:
        raise DataError(
            f"{run / RESULTS}: says that the run has ended, but {SCALARS} has no end. Move away "
            f"the one that is of another run; without {RESULTS} the run goes on."
        )
    return records


def read_ended(run: Path) -> RunRecords:
    """The records of a run that has ended.

    Raises:
        MissingInputError: there are none.
        DataError: they are damaged, have no end, or results.json was made of others.
    """
    path = run / RESULTS
    found = _read(path)
    records = read_to_end(run)
    made_of = found.get("records")
    if made_of not in (None, asdict(records.extent)):  # earlier versions did not say it
        raise DataError(f"{path}: was made of another scalars.jsonl (sha256 differs). {AGAIN}")
    return records


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_plain(path))
    except OSError as error:
        raise DataError(one_line(f"{path}: cannot be read ({error.strerror})")) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(one_line(f"{path}: damaged, it is no JSON object. {AGAIN}"))
    return found
