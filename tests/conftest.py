"""What several tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported anywhere: tests that run side by side must not fight for cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.distributed.pool import Pool  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


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
