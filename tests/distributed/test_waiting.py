"""Ranks wait for long work of the first one, outside of a collective, which has a time limit."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsecl import dist, meeting
from sparsecl.errors import DataError
from tests.events import wait_for


def long_work(folder: str) -> tuple[str, str]:
    """Work that lasts until the other rank has asked three times; then a failure that all hear."""
    dist.init()
    asked = Path(folder) / "asked"

    def ask(seconds: float) -> None:
        with open(asked, "a") as file:
            file.write("x")
        time.sleep(seconds)

    def slow() -> str:
        assert dist.rank() == 0, "only the first rank works"
        wait_for(lambda: asked.exists() and len(asked.read_text()) >= 3, "the other rank")
        return "done"

    def broken() -> None:
        raise DataError("corpus: broken")

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meeting, "POLL_SECONDS", 0.01)
            patch.setattr(dist, "time", SimpleNamespace(sleep=ask))
            result = dist.agree_at_length(slow)
            dist.agree_at_length(broken)
    except DataError as error:
        return result, str(error)
    finally:
        dist.shutdown()
    return result, ""


@pytest.mark.dist
def test_they_ask_until_it_is_done_and_hear_of_its_failure(pool, tmp_path):
    found = pool.run(long_work, 2, str(tmp_path))
    assert found == [("done", "corpus: broken")] * 2


def test_a_lone_process_does_the_work():
    assert dist.agree_at_length(lambda: 7) == 7
    with pytest.raises(DataError, match="broken"):
        dist.agree_at_length(lambda: (_ for _ in ()).throw(DataError("broken")))
