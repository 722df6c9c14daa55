"""Faults of records, results and the row before training."""

from tests.faults.row import Row

RECORDS: tuple[Row, ...] = ()
