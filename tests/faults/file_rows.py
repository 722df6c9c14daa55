"""Faults of the files and folders that runs, studies and caches open."""

from tests.faults.row import Row

FILES: tuple[Row, ...] = ()
