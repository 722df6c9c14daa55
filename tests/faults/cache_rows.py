"""Faults of the data cache, of readers and of data preparation."""

from tests.faults.row import Row

CACHES: tuple[Row, ...] = ()
