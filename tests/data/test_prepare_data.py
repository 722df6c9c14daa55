"""The script that prepares data ahead of time."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "prepare_data.py"

pytestmark = pytest.mark.slow  # it imports the run config, and torch with it


def call(folder, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


def test_it_prints_a_table(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "tokenizer: {kind: bytes}\n"
        "data:\n"
        "  cache_dir: cache\n"
        "  domains:\n"
        "    - {name: chain, source: synthetic, synthetic: {validation_tokens: 5000}}\n"
    )
    found = call(tmp_path, "--config", "run.yaml")
    assert found.returncode == 0, found.stderr
    head, row, last = found.stdout.splitlines()
    assert head.split()[:3] == ["domain", "documents", "MB"]
    assert row.split() == ["chain", "2", "0.20", "200,001", "5,001", "1.00"]
    assert last.startswith("tokenizer bytes, 257 ids, ")


def test_a_mistake_is_one_line_and_an_exit_code(tmp_path):
    domains = "data.domains=[{name: a, source: files, train: [none.txt]}]"
    found = call(tmp_path, "--set", domains)
    assert found.returncode == 66
    assert found.stderr.splitlines()[-1].startswith("sparsecl: domain a: train: none.txt: ")


def test_the_unexpected_is_70_as_in_the_other_programs(monkeypatch, capsys):
    def fail(*_, **__):
        raise KeyError("odd")

    main = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.setitem(main.__globals__, "prepare", fail)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    assert main() == 70
    assert "KeyError: 'odd'" in capsys.readouterr().err


def test_what_a_dataset_raises_is_one_line(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text('{"text": "a"}\n{oops\n')
    done = call(tmp_path, "--set", "data.domains=[{name: a, source: hf, path: corpus}]")
    assert done.returncode == 65
    line = done.stderr.splitlines()[-1]
    assert line.startswith("sparsecl: domain a: corpus: split train: ") and "train.jsonl" in line
