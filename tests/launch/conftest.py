"""The starter of launch/train.py."""

from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.launch.starter import PRELOAD, RANK_VARIABLES, ROOT, Starter


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """The process that forks. It keeps the environment in which it was started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        # These are tests on the CPU, also where there is a GPU; the server may not touch one.
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("DS_ACCELERATOR", "cpu")
        for name in RANK_VARIABLES:
            patch.delenv(name, raising=False)
        forkserver.set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()
    yield


@pytest.fixture
def starter(server: None, tmp_path: Path, shared_cache: Path) -> Starter:
    """Starts runs that write into the test's folder."""
    return Starter(tmp_path, shared_cache)
