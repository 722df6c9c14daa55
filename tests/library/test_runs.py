"""A run from Python: trained, read and loaded; the figures are those of its files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsecl
from sparsecl.errors import MissingInputError, UserError
from sparsecl.metrics.records import read_records
from sparsecl.metrics.summary import summarize
from sparsecl.model.gpt import GPT
from tests.analysis import made_run
from tests.events import HANG
from tests.metrics.fake_run import write_run

ROOT = Path(__file__).resolve().parents[2]

TINY = {
    "model": {"preset": None, "layers": 1, "width": 32, "heads": 4, "context": 16},
    "topology": {"density": 0.25},
    "tokenizer": {"kind": "bytes"},
    "phases": {"steps": 2},
    "batch": {"sequences": 4},
    "eval": {"every": 1, "tokens": 64},
    "data": {
        "domains": [
            {"name": name, "source": "synthetic", "synthetic": {"train_tokens": 2000}}
            for name in "ab"
        ]
    },
}

TRAINS = """
import json, sys, sparsecl
from pathlib import Path
run = sparsecl.train(json.loads(sys.argv[1]), run_dir="run")
assert run.metrics == sparsecl.read_run("run").metrics
again = sparsecl.train(json.loads(sys.argv[1]), run_dir="run")  # finished: it is read
assert again.metrics == run.metrics
"""


@pytest.mark.slow
def test_a_run_is_trained_read_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAINS, json.dumps(TINY)],
        cwd=tmp_path, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = sparsecl.read_run(tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert run.metrics["F_last"] == saved["forgetting"]["F_last"] is not None
    assert run.config.topology.density == 0.25 and run.matrix.loss.shape == (3, 2)
    tokens = 4 * 16 * np.arange(5)
    for curve in run.curves.values():
        assert curve.tokens.tolist() == tokens.tolist() and np.isfinite(curve.loss).all()
    monkeypatch.chdir(tmp_path)  # the bytes tokenizer is found anywhere
    scores = sparsecl.load("run").logits(torch.zeros(2, 5, dtype=torch.int64))
    assert scores.shape[:2] == (2, 5) and not torch.isnan(scores).any()


def test_a_folder_is_read_without_torch(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text("name: mine")
    read = f"import sys, sparsecl\nrun = sparsecl.read_run({str(folder)!r})\n"
    end = "assert 'torch' not in sys.modules; print(run.metrics['F_last'], run.config.name)"
    done = subprocess.run([sys.executable, "-c", read + end], capture_output=True, text=True)
    wanted = summarize(read_records(folder))["forgetting"]["F_last"]
    assert done.stdout == f"{wanted} mine\n", done.stderr
    with pytest.raises(MissingInputError, match="no such run folder"):
        sparsecl.read_run(tmp_path / "nowhere")


def test_the_loaded_model_is_the_saved_one(tmp_path: Path, shared_cache: Path) -> None:
    saved = made_run.make_run(tmp_path / "run", made_run.load(shared_cache))
    tokens = torch.arange(10).reshape(2, 5)
    loaded = sparsecl.load(tmp_path / "run", cache=shared_cache)
    assert not loaded.training
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(tokens).cpu(), saved.logits(tokens))


def test_a_model_is_built_without_a_run() -> None:
    model, again = sparsecl.build(TINY), sparsecl.build(TINY)
    assert isinstance(model, GPT)
    scores = model.logits(torch.arange(5)[None])
    assert torch.equal(scores, again.logits(torch.arange(5)[None]))
    assert torch.isfinite(scores[..., :257]).all() and scores.dtype == torch.float32


def test_a_wrong_config_is_one_line() -> None:
    with pytest.raises(UserError, match="modle"):
        sparsecl.build({"modle": {}})
    with pytest.raises(UserError, match="not JSON serializable"):
        sparsecl.build({"seed": object()})
