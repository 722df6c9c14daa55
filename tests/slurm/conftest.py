"""Projects whose training is a script of a few lines, and a real Slurm of two virtual nodes."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.starter import Starter
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT.parent / "shared" / "slurm"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's folder: the real scripts, and a launch/train.py that imports nothing heavy."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    (folder / "launch").mkdir()
    shutil.copy(ROOT / "tests" / "slurm" / "fake_train.py", folder / "launch" / "train.py")
    return folder


@pytest.fixture
def starter(server: None, tmp_path: Path, shared_cache: Path) -> Starter:
    """Starts runs without Slurm, to compare with."""
    return Starter(tmp_path, shared_cache)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The test Slurm that SLURM_CONF points to, stopped after this session.

    Start it with `eval "$(../shared/slurm/start-slurm)"`; the tests take ten minutes.
    """
    if "SLURM_CONF" not in os.environ:
        pytest.skip("no Slurm is running (SLURM_CONF is not set)")
    if not (SLURM / "start-slurm").is_file():
        pytest.skip(f"no test Slurm: {SLURM}/start-slurm is not there")
    if os.geteuid() != 0:
        pytest.skip("no test Slurm: it can be started by root only")
    try:
        found = Cluster(SLURM)
    except RuntimeError as error:
        pytest.skip(f"no test Slurm: {error}")
    yield found
    found.stop()
