"""What several tests share."""

import os
import re
import signal
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shell's `&` and nohup ignore signals, and every process that a test starts would inherit that.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(number) == signal.SIG_IGN:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)

# Before torch is imported anywhere: tests that run side by side must not fight for cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from sparsecl.programs._forks import PRELOAD  # noqa: E402
from tests.distributed.pool import Pool  # noqa: E402
from tests.events import wait_for  # noqa: E402
from tests.launch.starter import RANK_VARIABLES  # noqa: E402

# The same examples every time, however long they take, and nothing is kept in the working folder.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent


def _left_behind() -> list[str]:
    """Processes under this one that still run, but the helpers of multiprocessing. Linux only."""
    known = {str(os.getpid())}
    left = []
    for stat in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parent.name)):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            words = (stat.parent / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if parent in known and state != "Z":
            known.add(stat.parent.name)
            helper = re.search(r"multiprocessing.(forkserver|resource_tracker) import", words)
            if not (helper and parent == str(os.getpid())):
                left.append(f"process {stat.parent.name}: {words!r}")
    return left


@pytest.fixture(scope="session", autouse=True)
def _nothing_stays() -> Iterator[None]:
    """The last that happens: no test has left a process running, or a file in the checkout."""
    before = set(os.listdir(ROOT))
    yield
    wait_for(lambda: not _left_behind(), f"the end of {_left_behind()}")
    assert set(os.listdir(ROOT)) - before <= {".pytest_cache"}


@pytest.fixture(scope="session")
def pool(server: None) -> Iterator[Pool]:
    """Four workers for multi-rank cases."""
    workers = Pool(4)
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data cache for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """The process that tests/launch/starter.py forks. It keeps the environment of its start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        # These are tests on the CPU, also where there is a GPU; the server may not touch one.
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("DS_ACCELERATOR", "cpu")
        for name in RANK_VARIABLES:
            patch.delenv(name, raising=False)
        forkserver.set_forkserver_preload([*PRELOAD["text"], "tests.launch.preload"])
        forkserver.ensure_running()
    yield
