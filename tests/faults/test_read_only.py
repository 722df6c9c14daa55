"""A checkpoint folder that cannot be written to any more."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from sparsecl.checkpoint.published import PUBLISHED
from tests.checkpoint.tiny import check_law, fork_ranks, save

NOBODY = 65534


@pytest.fixture
def public() -> Path:
    """A folder that every user may enter; that of a test belongs to one user alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.fault("D2")
def test_a_folder_that_has_become_read_only(public):
    """Root may write everywhere, so the writer is somebody else."""
    root, log = public / "checkpoints", public / "log"
    save(root, 1)
    log.touch()
    log.chmod(0o666)
    root.chmod(0o555)

    def body(rank: int) -> None:
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        save(root, 2)

    (status,) = fork_ranks(1, body, log)
    root.chmod(0o755)
    message = log.read_text()
    assert os.waitstatus_to_exitcode(status) == 73, message
    assert "Permission denied" in message and str(root) in message and "\n" not in message
    check_law(root, {1})
    assert {path.name for path in root.iterdir()} == {"step_1", "latest", PUBLISHED}


@pytest.mark.fault("D2")
def test_a_folder_that_has_vanished(public):
    """It is made again: what is saved now is whole, and nothing claims what is gone."""
    root = public / "checkpoints"
    save(root, 1)
    shutil.rmtree(root)
    save(root, 2)
    check_law(root, {2})
    assert {path.name for path in root.iterdir()} == {"step_2", "latest", PUBLISHED}
