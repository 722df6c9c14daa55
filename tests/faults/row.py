"""One row of the table of faults, and the folders that many tests lie in."""

from dataclasses import dataclass

LAUNCH, RANKS, SAVES = "tests/launch/test_", "tests/distributed/test_", "tests/checkpoint/test_"
FAULTS, SECURE, DATA = "tests/faults/test_", "tests/security/test_", "tests/data/test_"


@dataclass(frozen=True)
class Row:
    """One fault."""

    id: str
    fault: str
    tests: tuple[str, ...]
    """FILE::FUNCTION; all parameters of a function count."""

    bound: str = ""
    """Exit code, or time, or "goes on"."""

    note: str = ""
    """What no test here shows."""
