"""Faults of signals, streams, processes and limits."""

from tests.faults.row import Row

SIGNALS: tuple[Row, ...] = ()
