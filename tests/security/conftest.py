"""What the tests of hostile input share."""

from pathlib import Path

import pytest

from tests.security.canary import Canary


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    """Silent as long as nothing runs."""
    return Canary(tmp_path)
