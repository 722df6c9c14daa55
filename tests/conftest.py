"""What several tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported anywhere: tests that run side by side must not fight for cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.distributed.pool import Pool  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes share the tests: one has all that use the pool of workers, which is started
    once; the other takes the remaining files one after the other."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        group = "pool" if "pool" in names else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Four workers for multi-rank cases."""
    workers = Pool(4)
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data cache for the whole session."""
    return tmp_path_factory.mktemp("cache")
