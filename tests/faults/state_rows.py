"""Faults of the state that a checkpoint says a run is in."""

from tests.faults.row import Row

STATES_OF_RUNS: tuple[Row, ...] = ()
