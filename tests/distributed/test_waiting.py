"""Ranks wait for long work of the first one, longer than a collective may take."""

import datetime
import time

import pytest

from sparsecl import dist
from sparsecl.errors import DataError


def long_work(seconds: float) -> tuple[str, str, float]:
    """Two collectives' worth of waiting; then a failure that all must hear of."""
    before = dist.COLLECTIVE_TIMEOUT
    dist.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=seconds / 2)
    try:
        dist.init()
    finally:
        dist.COLLECTIVE_TIMEOUT = before

    def slow() -> str:
        assert dist.rank() == 0, "only the first rank works"
        time.sleep(seconds)
        return "done"

    def broken() -> None:
        raise DataError("corpus: broken")

    started = time.monotonic()
    result = dist.agree_at_length(slow)
    waited = time.monotonic() - started
    try:
        dist.agree_at_length(broken)
    except DataError as error:
        return result, str(error), waited
    finally:
        dist.shutdown()
    return result, "", waited


@pytest.mark.dist
def test_they_wait_longer_than_a_collective_and_hear_of_its_failure(pool):
    for result, error, waited in pool.run(long_work, 2, 4.0):
        assert (result, error) == ("done", "corpus: broken")
        assert waited >= 3.9


def test_a_lone_process_does_the_work():
    assert dist.agree_at_length(lambda: 7) == 7
    with pytest.raises(DataError, match="broken"):
        dist.agree_at_length(lambda: (_ for _ in ()).throw(DataError("broken")))
