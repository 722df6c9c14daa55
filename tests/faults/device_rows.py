"""What a GPU would meet first, held by tests that need none."""

from tests.faults.row import Row

DEVICES: tuple[Row, ...] = ()
