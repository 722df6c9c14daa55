"""The notebook's cells run in their order, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.events import HANG

ROOT = Path(__file__).resolve().parents[2]
CELLS = json.loads((ROOT / "sparsecl/library/tour.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_no_output_is_stored() -> None:
    assert [cell["outputs"] for cell in CODE] == [[]] * len(CODE)


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path: Path) -> None:
    end = """
assert guard.audit().total == 0
assert run.matrix.loss[1, 0] < run.matrix.loss[0, 0] and run.metrics["F_last"] is not None
assert tokens.shape == (1, 22)
"""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join("".join(cell["source"]) for cell in CODE) + end],
        cwd=tmp_path, capture_output=True, text=True, timeout=HANG,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
