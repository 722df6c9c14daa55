"""Where a run begins: init_from names a checkpoint, or a run whose newest one is taken."""

import pytest

from sparsecl.engine.run import _start_folder
from sparsecl.errors import MissingInputError
from tests.checkpoint import made


def test_a_run_stands_for_its_newest_checkpoint(tmp_path):
    early = made.save(tmp_path / "checkpoints", step=5)
    assert _start_folder(early) == early == _start_folder(tmp_path)
    newest = made.save(tmp_path / "checkpoints", step=7)
    assert _start_folder(early) == early and _start_folder(tmp_path) == newest
    for wrong in (tmp_path / "none", newest / "manifest.json"):
        with pytest.raises(MissingInputError, match="no such folder"):
            _start_folder(wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match="holds no checkpoint"):
        _start_folder(tmp_path / "empty")
