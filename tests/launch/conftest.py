"""The starter of launch/train.py."""

from pathlib import Path

import pytest

from tests.launch.starter import Starter


@pytest.fixture
def starter(server: None, tmp_path: Path, shared_cache: Path) -> Starter:
    """Starts runs that write into the test's folder."""
    return Starter(tmp_path, shared_cache)
